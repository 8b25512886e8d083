-- Puts the two halves of parked work together again: a body that nothing waits for is due at once, and what waits
-- without a body cannot come back.
-- KEYS  1 parked, 2 bodies
-- ARGV  1… first entries to look at
-- Says  {bodies that wait again, waiting without a body that was removed}
local again, lost = 0, 0
for _, first in ipairs(ARGV) do
  local waits = redis.call('ZSCORE', KEYS[1], first)
  local body = redis.call('HEXISTS', KEYS[2], first) == 1
  if body and not waits then
    redis.call('ZADD', KEYS[1], 0, first)
    again = again + 1
  elseif not body then
    if waits then
      redis.call('ZREM', KEYS[1], first)
      lost = lost + 1
    end
    redis.call('HDEL', KEYS[2], first .. ':meta', first .. ':run')
  end
end
return {again, lost}
