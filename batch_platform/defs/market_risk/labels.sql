-- How much the index moved on the day, from its last close on: known once the market has closed.

WITH days AS (
    SELECT
        symbol,
        closes_at,
        ln(100 * sqrt(ln(high / low) ** 2 / (4 * ln(2)) + ln(open / lag(close) OVER each) ** 2)) AS log_volatility
    FROM indices
    WHERE closes_at >= $partition_start - INTERVAL 10 DAY           -- the last close lies at most a few days back
      AND closes_at < $partition_end
    WINDOW each AS (PARTITION BY symbol ORDER BY closes_at)
)

SELECT symbol, log_volatility
FROM days
WHERE closes_at >= $partition_start
