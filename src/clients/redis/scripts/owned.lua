-- The ownership token: whether the entry is pending for exactly this consumer with exactly this delivery count.
-- A stream or group that is gone answers with an error, which has no first element: not ours.
local function owned(stream, group, entry, consumer, deliveries)
  local pending = redis.pcall('XPENDING', stream, group, entry, entry, 1)[1]
  return pending and pending[2] == consumer and pending[4] == tonumber(deliveries)
end
