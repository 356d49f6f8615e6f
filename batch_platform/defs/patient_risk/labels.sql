-- Whether the patient died or got a transplant within 365 days of the visit.
--
-- A patient who was followed for less than that, and lived, has no row here: nobody knows. Counted as a survivor, such a
-- patient would make the risk look smaller.

SELECT
    patient_id,
    visited_at,
    coalesce(days_to_event <= 365, FALSE) AS event
FROM visits
WHERE visited_at >= $partition_start
  AND visited_at < $partition_end
  AND (days_to_event <= 365 OR days_followed >= 365)
