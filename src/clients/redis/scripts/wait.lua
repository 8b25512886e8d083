-- Takes an entry out of its stream until somebody has decided or it is too late, and asks: the questions stand in the
-- journal and in the index, each new one goes out as an event, and the node's state says that it waits.
-- KEYS  1 work stream, 2 done, 3 crashes, 4 parked, 5 bodies, 6 state, 7 journal, 8 index of questions, 9 events,
--       10… other work streams
-- ARGV  1 group, 2 entry, 3 consumer, 4 deliveries, 5 field of the run, 6 record of the parked run, 7 work id,
--       8 moment in ms at which it is too late, 9 first entry, 10 meta, 11 graph, node and run,
--       12 wait in ms after which it goes on all the same ('' for none), 13 life in ms,
--       14 node's field in the state ('' writes no state), 15 node state, 16 document that was read,
--       17 document that replaces it (both '' if none was read), 18 header of a new journal,
--       19 '1' if everything in the journal goes, 20 events to keep,
--       21… for each question: id, field, question, field of its answer, event, entry of the index
-- Says  ok | gone | again | dup | lost | {conflict, document} | {wrongtype, key}
local record = redis.pcall('HGET', KEYS[2], ARGV[5])
if not owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]) then return record == ARGV[6] and 'again' or 'lost' end

-- Everything that could fail is looked at before the first write, for a script is not rolled back.
if type(record) == 'table' then return {'wrongtype', KEYS[2]} end
local kinds = {
  [KEYS[4]] = 'zset', [KEYS[5]] = 'hash', [KEYS[7]] = 'hash', [KEYS[8]] = 'hash', [KEYS[9]] = 'stream',
}
for key, wanted in pairs(kinds) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= wanted and kind ~= 'none' then return {'wrongtype', key} end
end
local data = data_of(KEYS[1], ARGV[2])
-- Somebody deleted the entry: there is nothing to come back to.
if not data then return 'lost' end
local other = taken(record, ARGV[7], 10)
local layout
if ARGV[14] ~= '' and not other then
  layout = redis.call('TYPE', KEYS[6]).ok
  if layout == 'string' then
    local document = redis.call('GET', KEYS[6])
    if ARGV[17] == '' or document ~= ARGV[16] then return {'conflict', document} end
  elseif layout ~= 'hash' and layout ~= 'none' then
    return {'wrongtype', KEYS[6]}
  end
end

-- The acknowledgement is first: after a write that needs no memory the rest is allowed at maxmemory too.
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.pcall('HDEL', KEYS[3], ARGV[2])
if other then return 'dup' end
if ARGV[19] == '1' then redis.call('DEL', KEYS[7]) end
redis.call('HSETNX', KEYS[7], 'hdr', ARGV[18])
local now = clock()
local due = tonumber(ARGV[8])
if ARGV[12] ~= '' then due = math.min(due, now + tonumber(ARGV[12])) end
for i = 21, #ARGV, 6 do
  if redis.call('HSETNX', KEYS[7], ARGV[i + 1], ARGV[i + 2]) == 1 then
    redis.call('HSET', KEYS[8], ARGV[i], ARGV[i + 5])
    redis.call('XADD', KEYS[9], 'MAXLEN', '~', ARGV[20], '*', 'data', ARGV[i + 4])
  elseif redis.call('HEXISTS', KEYS[7], ARGV[i + 3]) == 1 then
    -- It was answered while the node ran for the sake of another one.
    due = now
  end
end
if layout == 'hash' then
  redis.call('HSET', KEYS[6], ARGV[14], ARGV[15])
  redis.call('PEXPIRE', KEYS[6], ARGV[13], 'GT')
elseif layout == 'string' then
  redis.call('SET', KEYS[6], ARGV[17], 'KEEPTTL')
  redis.call('PEXPIRE', KEYS[6], ARGV[13], 'GT')
end
set_aside({
  parked = KEYS[4], bodies = KEYS[5], done = KEYS[2], state = KEYS[6], journal = KEYS[7],
  field = ARGV[5], record = ARGV[6], first = ARGV[9], meta = ARGV[10], names = ARGV[11],
  data = data, due = due,
})
return layout == 'none' and 'gone' or 'ok'
