-- Every customer who has bought before the month begins: recency, frequency and money, as of that moment.
--
-- Traps: the customers are those who first bought in the first quarter of 1997, so nobody is new later on, and who bought in
-- April is known to have bought before. Everything here ends before the month begins. A month in which many first bought looks
-- like a month of many purchases; that is a property of this table, not of the shop.

SELECT
    customer_id,
    strftime(min(day), '%Y-%m') AS cohort,
    ($partition_start::DATE - max(day)) AS days_since_last,
    ($partition_start::DATE - min(day)) AS days_since_first,
    count(*) AS purchases,
    count(*) FILTER (WHERE day >= $partition_start::DATE - 90) AS purchases_90d,
    sum(cds) AS cds,
    sum(dollars::DECIMAL(10, 2))::DOUBLE AS dollars,
    max(dollars) AS largest,
    CASE WHEN count(*) > 1 THEN (max(day) - min(day)) / (count(*) - 1) END AS days_between
FROM purchases
WHERE day < $partition_start::DATE
GROUP BY customer_id
