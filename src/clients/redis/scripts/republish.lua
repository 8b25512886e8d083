-- Sends a terminal event once more. It is counted like any other.
-- KEYS  1 done, 2 events
-- ARGV  1 event, 2 life of the count in ms
-- Says  {ok, count} | {wrongtype, key}
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'stream' and kind ~= 'none' then return {'wrongtype', KEYS[2]} end
local seq = redis.pcall('HGET', KEYS[1], 'seq')
if type(seq) == 'table' then return {'wrongtype', KEYS[1]} end
seq = string.format('%.0f', (tonumber(seq or 0) or 0) + 1)
redis.call('XADD', KEYS[2], '*', 'data', ARGV[1], 'seq', seq)
local added = redis.call('HSET', KEYS[1], 'seq', seq)
if added == 1 and redis.call('HLEN', KEYS[1]) == 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT')
end
return {'ok', seq}
