-- Looks for parked work whose wait is over, by the server's own clock.
-- KEYS  1 parked, 2 bodies
-- ARGV  1 most to find
-- Says  {how many are parked, {first entry, graph node and run or '', …}} | {wrongtype, key}
for key, wanted in pairs({[KEYS[1]] = 'zset', [KEYS[2]] = 'hash'}) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= wanted and kind ~= 'none' then return {'wrongtype', key} end
end
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local found = {}
for _, first in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  found[#found + 1] = first
  found[#found + 1] = redis.call('HGET', KEYS[2], first .. ':run') or ''
end
return {redis.call('ZCARD', KEYS[1]), found}
