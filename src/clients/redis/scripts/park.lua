-- Takes an entry out of its stream until its wait is over. The run stays its own, and neither the graph's state nor
-- what belongs to it expires meanwhile.
-- KEYS  1 work stream, 2 done, 3 crashes, 4 parked, 5 bodies, 6 state, 7 journal, 8… other work streams
-- ARGV  1 group, 2 entry, 3 consumer, 4 deliveries, 5 field of the run, 6 record of the parked run, 7 work id,
--       8 wait in ms, 9 first entry, 10 meta, 11 graph, node and run
-- Says  ok | again | dup | lost | {wrongtype, key}
local record = redis.pcall('HGET', KEYS[2], ARGV[5])
if not owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]) then return record == ARGV[6] and 'again' or 'lost' end

-- Everything that could fail is looked at before the first write, for a script is not rolled back.
if type(record) == 'table' then return {'wrongtype', KEYS[2]} end
for key, wanted in pairs({[KEYS[4]] = 'zset', [KEYS[5]] = 'hash'}) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= wanted and kind ~= 'none' then return {'wrongtype', key} end
end
local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
local data
if found then
  for i = 1, #found[2], 2 do
    if found[2][i] == 'data' then data = found[2][i + 1] break end
  end
end
-- Somebody deleted the entry: there is nothing to come back to.
if not data then return 'lost' end
local other = taken(record, ARGV[7], 8)

-- The acknowledgement is first: after a write that needs no memory the rest is allowed at maxmemory too.
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.pcall('HDEL', KEYS[3], ARGV[2])
if other then return 'dup' end
local time = redis.call('TIME')
local due = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[8])
redis.call('ZADD', KEYS[4], string.format('%.0f', due), ARGV[9])
redis.call('HSET', KEYS[5], ARGV[9], data, ARGV[9] .. ':meta', ARGV[10], ARGV[9] .. ':run', ARGV[11])
redis.call('HSET', KEYS[2], ARGV[5], ARGV[6])

-- The graph's parked runs remember how long the state had to live; the last one gives that back.
local held = math.max(tonumber(redis.call('HGET', KEYS[2], 'held') or 0) or 0, 0)
local life = redis.call('PTTL', KEYS[6])
if held == 0 or life >= 0 then redis.call('HSET', KEYS[2], 'kept', string.format('%.0f', life)) end
redis.call('HSET', KEYS[2], 'held', string.format('%.0f', held + 1))
redis.call('PERSIST', KEYS[2])
redis.call('PERSIST', KEYS[6])
redis.call('PERSIST', KEYS[7])
return 'ok'
