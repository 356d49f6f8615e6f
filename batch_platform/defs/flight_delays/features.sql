-- What is known at midnight, New York time, about each flight scheduled to leave on the day that begins.
--
-- One row per flight, cancelled ones included: at midnight nobody knows which those will be.
--
-- Nothing that happens during the day is used:
--   * an earlier flight counts once it HAS ARRIVED. Its day being over is not enough: a flight that leaves at 23:00
--     and lands after midnight, on time or not, is one whose delay is still unknown;
--   * weather is what was observed before midnight;
--   * the schedule, tail numbers included, is taken as planned. The source holds the plane that flew, which can
--     differ from the plane that was planned.
--
-- Shares of late flights are pulled towards the share of all flights, by as much as 20 more flights would (5 for a
-- single flight number), so that a carrier, airport or route seen seldom or never has a sensible value, not none.
-- Sums are of integers or decimals, never of floating point numbers: every run gives the same bits.
--
-- Hours and days are those of the connection's time zone, America/New_York.

WITH schedule AS MATERIALIZED (
    -- The flights of the day and of the 30 days before it: the only scan of the flights.
    SELECT
        flight_id,
        scheduled_departure,
        scheduled_arrival,
        scheduled_departure >= $partition_start AS is_today,
        carrier,
        flight,
        tailnum,
        origin,
        dest,
        distance,
        (epoch_ms(scheduled_arrival) - epoch_ms(scheduled_departure)) // 60000 AS scheduled_minutes,
        coalesce(arrived_at < $partition_start, FALSE) AS has_arrived,
        arr_delay,
        dep_delay
    FROM flights
    WHERE scheduled_departure >= $partition_start - INTERVAL 30 DAY
      AND scheduled_departure < $partition_end
),

today AS (
    SELECT
        flight_id,
        scheduled_departure,
        carrier,
        flight,
        tailnum,
        origin,
        dest,
        distance,
        scheduled_minutes,
        date_part('isodow', scheduled_departure) AS weekday,
        date_part('hour', scheduled_departure) AS hour,
        date_part('hour', scheduled_departure) * 60 + date_part('minute', scheduled_departure) AS departure_minute,
        count(*) OVER (PARTITION BY origin) AS origin_flights_of_day,
        count(*) OVER same_origin AS origin_flights_so_far,
        count(*) OVER (
            same_origin RANGE BETWEEN INTERVAL 30 MINUTE PRECEDING AND INTERVAL 30 MINUTE FOLLOWING
        ) AS origin_flights_near,
        row_number() OVER same_plane AS plane_leg,
        (epoch_ms(scheduled_departure) - epoch_ms(lag(scheduled_departure) OVER same_plane)) // 60000 AS plane_gap
    FROM schedule
    WHERE is_today
    WINDOW
        same_origin AS (PARTITION BY origin ORDER BY scheduled_departure),
        same_plane AS (PARTITION BY tailnum ORDER BY scheduled_departure, flight_id)
),

-- Lateness of earlier flights -----------------------------------------------------------------------------------------

arrived AS MATERIALIZED (
    SELECT
        carrier,
        flight,
        origin,
        dest,
        scheduled_departure,
        scheduled_departure >= $partition_start - INTERVAL 1 DAY AS last_day,
        scheduled_departure >= $partition_start - INTERVAL 7 DAY AS last_week,
        arr_delay >= 30 AS late,
        least(arr_delay, 120) AS delay,                         -- one flight ten hours late says little about the next
        scheduled_minutes + arr_delay - dep_delay AS flown_minutes      -- from leaving the gate to reaching the other
    FROM schedule
    WHERE NOT is_today AND has_arrived
),

everything AS MATERIALIZED (
    -- 200 flights of which 15% are late stand in for the history that the first days of the year lack.
    SELECT
        (count(*) FILTER (WHERE late) + 30) / (count(*) + 200) AS late_30d,
        (count(*) FILTER (WHERE late AND last_day) + 30) / (count(*) FILTER (WHERE last_day) + 200) AS late_1d,
        (count(*) FILTER (WHERE late AND last_week) + 30)
            / (count(*) FILTER (WHERE last_week) + 200) AS late_7d,
        coalesce(sum(delay) FILTER (WHERE last_day) / count(*) FILTER (WHERE last_day), 0) AS delay_1d,
        coalesce(sum(delay) / count(*), 0) AS delay_30d
    FROM arrived
),

by_origin AS (
    SELECT
        origin,
        (count(*) FILTER (WHERE late AND last_day) + 20 * late_30d)
            / (count(*) FILTER (WHERE last_day) + 20) AS late_1d,
        (coalesce(sum(delay) FILTER (WHERE last_day), 0) + 20 * delay_30d)
            / (count(*) FILTER (WHERE last_day) + 20) AS delay_1d
    FROM arrived CROSS JOIN everything
    GROUP BY origin, late_30d, delay_30d
),

by_origin_and_hour AS (
    SELECT
        origin,
        date_part('hour', scheduled_departure) AS hour,
        (count(*) FILTER (WHERE late) + 20 * late_30d) / (count(*) + 20) AS late_7d
    FROM arrived CROSS JOIN everything
    WHERE last_week
    GROUP BY origin, hour, late_30d
),

by_carrier AS (
    SELECT
        carrier,
        (count(*) FILTER (WHERE late AND last_day) + 20 * late_30d)
            / (count(*) FILTER (WHERE last_day) + 20) AS late_1d,
        (count(*) FILTER (WHERE late AND last_week) + 20 * late_30d)
            / (count(*) FILTER (WHERE last_week) + 20) AS late_7d,
        (count(*) FILTER (WHERE late) + 20 * late_30d) / (count(*) + 20) AS late_30d
    FROM arrived CROSS JOIN everything
    GROUP BY carrier, everything.late_30d
),

by_dest AS (
    SELECT
        dest,
        (count(*) FILTER (WHERE late AND last_day) + 20 * late_30d)
            / (count(*) FILTER (WHERE last_day) + 20) AS late_1d,
        (count(*) FILTER (WHERE late) + 20 * late_30d) / (count(*) + 20) AS late_30d
    FROM arrived CROSS JOIN everything
    GROUP BY dest, everything.late_30d
),

by_route AS (
    SELECT
        carrier,
        origin,
        dest,
        (count(*) FILTER (WHERE late) + 20 * late_30d) / (count(*) + 20) AS late_30d,
        sum(flown_minutes) / count(*) AS flown_minutes
    FROM arrived CROSS JOIN everything
    GROUP BY carrier, origin, dest, everything.late_30d
),

by_flight AS (
    SELECT
        carrier,
        flight,
        (count(*) FILTER (WHERE late) + 5 * late_30d) / (count(*) + 5) AS late_30d,
        (sum(delay) + 5 * delay_30d) / (count(*) + 5) AS delay_30d
    FROM arrived CROSS JOIN everything
    GROUP BY carrier, flight, everything.late_30d, everything.delay_30d
),

-- Of the flights due in the 22 hours until 22:00, the share that has landed. The rest is cancelled, diverted or more
-- than two hours late; which of them, is not known yet. Where none was due, nothing is amiss: 1.

landed_by_origin AS (
    SELECT origin, (count(*) FILTER (WHERE has_arrived) + 20) / (count(*) + 20) AS share
    FROM schedule
    WHERE scheduled_arrival BETWEEN $partition_start - INTERVAL 24 HOUR AND $partition_start - INTERVAL 2 HOUR
    GROUP BY origin
),

landed_by_carrier AS (
    SELECT carrier, (count(*) FILTER (WHERE has_arrived) + 20) / (count(*) + 20) AS share
    FROM schedule
    WHERE scheduled_arrival BETWEEN $partition_start - INTERVAL 24 HOUR AND $partition_start - INTERVAL 2 HOUR
    GROUP BY carrier
),

-- Weather -------------------------------------------------------------------------------------------------------------

observed AS (
    -- The last value observed of each measure (some hours lack some), and how it has changed.
    SELECT
        origin,
        max_by(temp, time_hour) AS temp,
        max_by(dewp, time_hour) AS dew_point,
        max_by(humid, time_hour) AS humidity,
        max_by(wind_speed, time_hour) AS wind_speed,
        max_by(wind_dir, time_hour) AS wind_direction,
        max_by(visib, time_hour) AS visibility,
        max_by(pressure, time_hour) AS pressure,
        max_by(temp, time_hour) FILTER (WHERE time_hour < $partition_start - INTERVAL 24 HOUR) AS earlier_temp,
        max_by(dewp, time_hour) FILTER (WHERE time_hour < $partition_start - INTERVAL 12 HOUR) AS earlier_dew_point,
        max_by(pressure, time_hour) FILTER (WHERE time_hour < $partition_start - INTERVAL 12 HOUR) AS earlier_pressure,
        max(wind_gust) FILTER (WHERE time_hour >= $partition_start - INTERVAL 6 HOUR) AS gust_6h,
        min(visib) FILTER (WHERE time_hour >= $partition_start - INTERVAL 6 HOUR) AS visibility_6h,
        sum(precip::DECIMAL(6, 2)) FILTER (WHERE time_hour >= $partition_start - INTERVAL 6 HOUR) AS precip_6h,
        sum(precip::DECIMAL(6, 2)) FILTER (WHERE time_hour >= $partition_start - INTERVAL 24 HOUR) AS precip_24h
    FROM weather
    WHERE time_hour >= $partition_start - INTERVAL 48 HOUR
      AND time_hour < $partition_start
    GROUP BY origin
)

SELECT
    today.flight_id,
    today.scheduled_departure,

    -- the schedule
    today.carrier,
    today.origin,
    today.dest,
    today.weekday,                                              -- 1 Monday to 7 Sunday
    today.hour,
    today.departure_minute,                                     -- since midnight, by the clock
    today.distance,                                             -- miles
    today.scheduled_minutes,
    today.origin_flights_of_day,
    today.origin_flights_so_far,                                -- up to and with the minute of this one
    today.origin_flights_near,                                  -- within half an hour of this one
    CASE WHEN today.tailnum IS NOT NULL THEN today.plane_leg END AS plane_leg,
    CASE WHEN today.tailnum IS NOT NULL THEN today.plane_gap END AS plane_gap,      -- minutes since its last leg began
    date_part('year', $partition_start) - planes.year AS plane_age,
    planes.seats AS plane_seats,

    -- how late flights were
    everything.late_1d AS all_late_1d,
    everything.late_7d AS all_late_7d,
    everything.delay_1d AS all_delay_1d,
    coalesce(by_origin.late_1d, everything.late_30d) AS origin_late_1d,
    coalesce(by_origin.delay_1d, everything.delay_30d) AS origin_delay_1d,
    coalesce(by_origin_and_hour.late_7d, everything.late_30d) AS hour_late_7d,
    coalesce(by_carrier.late_1d, everything.late_30d) AS carrier_late_1d,
    coalesce(by_carrier.late_7d, everything.late_30d) AS carrier_late_7d,
    coalesce(by_carrier.late_30d, everything.late_30d) AS carrier_late_30d,
    coalesce(by_dest.late_1d, everything.late_30d) AS dest_late_1d,
    coalesce(by_dest.late_30d, everything.late_30d) AS dest_late_30d,
    coalesce(by_route.late_30d, everything.late_30d) AS route_late_30d,
    coalesce(by_flight.late_30d, everything.late_30d) AS flight_late_30d,
    coalesce(by_flight.delay_30d, everything.delay_30d) AS flight_delay_30d,
    coalesce(today.scheduled_minutes - by_route.flown_minutes, 0) AS schedule_slack,   -- minutes to spare, as a rule
    coalesce(landed_by_origin.share, 1) AS origin_landed_1d,
    coalesce(landed_by_carrier.share, 1) AS carrier_landed_1d,

    -- the weather
    observed.temp,
    observed.temp - observed.earlier_temp AS temp_change,       -- since the midnight before
    observed.dew_point,
    observed.dew_point - observed.earlier_dew_point AS dew_point_change,            -- since noon
    observed.humidity,
    observed.wind_speed,
    observed.wind_direction,
    observed.gust_6h,                                           -- the strongest since 18:00; null: no gusts
    observed.visibility,
    observed.visibility_6h,                                     -- the poorest since 18:00
    observed.pressure,
    observed.pressure - observed.earlier_pressure AS pressure_change,               -- since noon
    observed.precip_6h::DOUBLE AS precip_6h,
    observed.precip_24h::DOUBLE AS precip_24h
FROM today
CROSS JOIN everything
LEFT JOIN planes ON planes.tailnum = today.tailnum
LEFT JOIN by_origin ON by_origin.origin = today.origin
LEFT JOIN by_origin_and_hour ON by_origin_and_hour.origin = today.origin AND by_origin_and_hour.hour = today.hour
LEFT JOIN by_carrier ON by_carrier.carrier = today.carrier
LEFT JOIN by_dest ON by_dest.dest = today.dest
LEFT JOIN by_route
    ON by_route.carrier = today.carrier AND by_route.origin = today.origin AND by_route.dest = today.dest
LEFT JOIN by_flight ON by_flight.carrier = today.carrier AND by_flight.flight = today.flight
LEFT JOIN landed_by_origin ON landed_by_origin.origin = today.origin
LEFT JOIN landed_by_carrier ON landed_by_carrier.carrier = today.carrier
LEFT JOIN observed ON observed.origin = today.origin
ORDER BY today.scheduled_departure, today.flight_id
