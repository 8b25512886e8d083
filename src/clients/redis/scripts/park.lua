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
local data = data_of(KEYS[1], ARGV[2])
-- Somebody deleted the entry: there is nothing to come back to.
if not data then return 'lost' end
local other = taken(record, ARGV[7], 8)

-- The acknowledgement is first: after a write that needs no memory the rest is allowed at maxmemory too.
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.pcall('HDEL', KEYS[3], ARGV[2])
if other then return 'dup' end
set_aside({
  parked = KEYS[4], bodies = KEYS[5], done = KEYS[2], state = KEYS[6], journal = KEYS[7],
  field = ARGV[5], record = ARGV[6], first = ARGV[9], meta = ARGV[10], names = ARGV[11],
  data = data, due = clock() + tonumber(ARGV[8]),
})
return 'ok'
