-- Key and true outcome of the rows whose outcome is known.
SELECT id, label
FROM events
WHERE happened_at >= $partition_start AND happened_at < $partition_end AND label IS NOT NULL
