-- Whether the credit was classed as a bad risk.

SELECT applicant_id, defaulted
FROM applicants
WHERE applied_at >= $partition_start
  AND applied_at < $partition_end
