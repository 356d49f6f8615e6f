-- Whether each of them buys on one of the 90 days from the start of the month on.

SELECT
    customer_id,
    bool_or(day >= $partition_start::DATE) AS bought_again
FROM purchases
WHERE day < $partition_start::DATE + 90
GROUP BY customer_id
HAVING min(day) < $partition_start::DATE
