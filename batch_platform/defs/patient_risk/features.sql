-- What is known at a visit: the patient, the signs and the laboratory values of the visit, and what changed since the last one.
--
-- Traps:
--   * the follow-up of a patient is an outcome: who is followed for long has not died. So is the number of visits to come;
--   * values of later visits. "The last value" is that of the visit before;
--   * cholesterol lacks at 42% of the visits, since it was measured at some alone. A missing value stays missing here.

SELECT
    patient_id,
    visited_at,
    age,
    sex,
    treatment,
    days_enrolled,
    stage,
    ascites,
    hepato AS hepatomegaly,
    spiders,
    edema,
    ln(bili) AS log_bilirubin,
    bili AS bilirubin,
    albumin,
    ln(protime) AS log_prothrombin,
    chol AS cholesterol,
    alk_phos AS alkaline_phosphatase,
    ast,
    platelet AS platelets,
    ln(bili) - coalesce(lag(ln(bili)) OVER patient, ln(bili)) AS bilirubin_change,
    albumin - coalesce(lag(albumin) OVER patient, albumin) AS albumin_change
FROM visits
WHERE visited_at < $partition_end
WINDOW patient AS (PARTITION BY patient_id ORDER BY visited_at)
QUALIFY visited_at >= $partition_start
