-- One row for each thing to score in the partition, with what is known about it when the partition starts.
-- Each source is a view; $partition_start, $partition_end (TIMESTAMPTZ) and $partition_key are bound values.
SELECT
    id,                                 -- the key
    happened_at,                        -- the time, inside the partition
    amount                              -- features: everything else
FROM events
WHERE happened_at >= $partition_start AND happened_at < $partition_end
