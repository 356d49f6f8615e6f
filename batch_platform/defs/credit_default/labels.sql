-- How the credit was classed: good or bad.

SELECT applicant_id, creditability
FROM applicants
WHERE applied_at >= $partition_start
  AND applied_at < $partition_end
