-- What is known when the third grade begins.
--
-- Traps: the score in reading at the end of the third grade is known only with the label. The school is no feature: the model
-- is to serve schools that it has never seen. Who was not in the study in a grade has no score there, and stays.

SELECT
    pupil_id,
    enters_at,
    school_id,
    readk, mathk, read1, math1, read2, math2,
    CASE WHEN readk IS NULL AND read1 IS NULL AND read2 IS NULL THEN 1 ELSE 0 END AS is_new,
    gender,
    age,
    lunch,
    class_type,
    smallk + small1 + small2 AS years_in_small_class,
    area,
    teacher_degree,
    teacher_experience
FROM pupils
WHERE enters_at >= $partition_start
  AND enters_at < $partition_end
