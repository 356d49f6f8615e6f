-- Recency, frequency and money of every customer who has bought before the month begins.
--
-- Logarithms, since k-means draws borders at equal distances: from one purchase to two is as far as from five to ten.

SELECT
    customer_id,
    ln(1 + ($partition_start::DATE - max(day))) AS recency,         -- days since the last purchase
    ln(count(*)) AS frequency,                                      -- purchases
    ln(1 + sum(dollars::DECIMAL(10, 2))::DOUBLE / count(*)) AS money        -- dollars a purchase
FROM purchases
WHERE day < $partition_start::DATE
GROUP BY customer_id
