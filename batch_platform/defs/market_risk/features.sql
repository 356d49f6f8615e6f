-- What is known before the market opens: how much the index moved on the days before. One row for each index and trading day.
--
-- The volatility of a day is estimated from its range, the jump since the last close included (Parkinson 1980), in percent.
-- Logarithms of it are nearly normal, and falls raise it more than rises do.
-- Trap: the row of a day holds its high, low and close. All that is used here ends with the day before.

WITH days AS (
    SELECT
        symbol,
        closes_at - INTERVAL 7 HOUR AS opens_at,
        ln(100 * sqrt(ln(high / low) ** 2 / (4 * ln(2)) + ln(open / lag(close) OVER each) ** 2)) AS log_volatility,
        100 * ln(close / lag(close) OVER each) AS change
    FROM indices
    WHERE closes_at >= $partition_start - INTERVAL 60 DAY           -- 22 trading days, and then some
      AND closes_at < $partition_end
    WINDOW each AS (PARTITION BY symbol ORDER BY closes_at)
)

SELECT
    symbol,
    opens_at,
    lag(log_volatility) OVER each AS last_day,
    avg(log_volatility) OVER (each ROWS BETWEEN 5 PRECEDING AND 1 PRECEDING) AS last_week,
    avg(log_volatility) OVER (each ROWS BETWEEN 22 PRECEDING AND 1 PRECEDING) AS last_month,
    lag(change) OVER each AS last_change,                           -- percent
    least(lag(change) OVER each, 0) AS last_fall
FROM days
WINDOW each AS (PARTITION BY symbol ORDER BY opens_at)
QUALIFY opens_at >= $partition_start
