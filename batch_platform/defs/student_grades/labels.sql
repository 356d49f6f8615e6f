-- The score in mathematics (Stanford Achievement Test, scaled) at the end of the third grade, of those who took the test.
-- All pupils of a school weigh as much as those of any other: the model is to do well at a new school, large or small.

SELECT pupil_id, math3, 1 / count(*) OVER (PARTITION BY school_id) AS of_school
FROM pupils
WHERE enters_at >= $partition_start
  AND enters_at < $partition_end
  AND math3 IS NOT NULL
