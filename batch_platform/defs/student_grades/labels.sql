-- The score in mathematics (Stanford Achievement Test, scaled) at the end of the third grade, of those who took the test.

SELECT pupil_id, math3
FROM pupils
WHERE enters_at >= $partition_start
  AND enters_at < $partition_end
  AND math3 IS NOT NULL
