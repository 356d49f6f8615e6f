-- Whether each flight of the partition arrived 30 minutes late or more.
--
-- A cancelled or diverted flight has no arrival: it has no row here, and its label stays unknown.

SELECT
    flight_id,
    arr_delay >= 30 AS late
FROM flights
WHERE scheduled_departure >= $partition_start
  AND scheduled_departure < $partition_end
  AND arr_delay IS NOT NULL
ORDER BY flight_id
