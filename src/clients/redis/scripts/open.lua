-- Gives a run to an entry and says how the graph's state is laid out, creating it where the item brought it along.
-- KEYS  1 work stream, 2 state, 3 done, 4 crashes, 5 journal, 6… other work streams
-- ARGV  1 group, 2 entry, 3 consumer, 4 deliveries, 5 field of the run, 6 record of a running run, 7 work id,
--       8 life in ms, 9 layout of a state to create ('' for none), 10… its fields and values, or the document;
--       or 9 'back' for a node that waited for others, 10 its field in the state, 11 how its state begins while it
--       waits, 12 what tells there that it is this run's, 13 its state from now on
-- Says  lost | dup | {wrongtype, key} | hash | string | none, these three as {layout, {field, value, …}} with a journal
if not owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]) then return 'lost' end
local record = redis.pcall('HGET', KEYS[3], ARGV[5])
if type(record) == 'table' then return {'wrongtype', KEYS[3]} end
if taken(record, ARGV[7], 6) then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
  redis.call('XDEL', KEYS[1], ARGV[2])
  redis.pcall('HDEL', KEYS[4], ARGV[2])
  return 'dup'
end
-- Only a run that was opened before can have a journal: the first opening does not look for one.
local journal = {}
if record or ARGV[4] ~= '1' then
  journal = redis.pcall('HGETALL', KEYS[5])
  if journal.err then return {'wrongtype', KEYS[5]} end
end
if record ~= ARGV[6] then record_run(KEYS[3], ARGV[8], ARGV[5], ARGV[6]) end
local layout = redis.call('TYPE', KEYS[2]).ok
if ARGV[9] == 'back' then
  local waits = layout == 'hash' and redis.call('HGET', KEYS[2], ARGV[10])
  if waits and string.sub(waits, 1, #ARGV[11]) == ARGV[11] and string.find(waits, ARGV[12], 1, true) then
    redis.call('HSET', KEYS[2], ARGV[10], ARGV[13])
  end
elseif layout == 'none' and ARGV[9] ~= '' then
  layout = ARGV[9]
  if layout == 'string' then
    redis.call('SET', KEYS[2], ARGV[10], 'PX', ARGV[8])
  else
    for i = 10, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
    redis.call('PEXPIRE', KEYS[2], ARGV[8])
  end
end
if layout ~= 'hash' and layout ~= 'string' and layout ~= 'none' then return {'wrongtype', KEYS[2]} end
if #journal > 0 then return {layout, journal} end
return layout
