-- Ends a run: acknowledgement, node state, record and terminal event in one step, or nothing of it.
-- KEYS  1 work stream, 2 state, 3 done, 4 journal, 5 events, 6 crashes, 7 dead letters, 8 staged output,
--       9 its place, 10… other work streams
-- ARGV  1 group, 2 entry, 3 consumer, 4 deliveries, 5 field of the run, 6 record of the done run, 7 work id,
--       8 life in ms, 9 event, 10 node's field in the state ('' writes no state), 11 node state,
--       12 document that was read, 13 document that replaces it (both '' if none was read),
--       14 '1' if an output was staged, 15 field of a conversation in the state ('' for none), 16 conversation,
--       17… fields and values of a dead letter
-- Says  ok | gone | again | dup | lost | unstaged | {conflict, document} | {wrongtype, key}
local run = redis.pcall('HMGET', KEYS[3], ARGV[5], 'seq')
if not owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]) then
  return run[1] == ARGV[6] and 'again' or 'lost'
end

-- Everything that could fail is looked at before the first write, for a script is not rolled back.
local seq = not run.err and tonumber(run[2] or 0)
if not seq then return {'wrongtype', KEYS[3]} end
local letter = ARGV[17] ~= nil
if letter then
  local kind = redis.call('TYPE', KEYS[7]).ok
  if kind ~= 'stream' and kind ~= 'none' then return {'wrongtype', KEYS[7]} end
end
if taken(run[1], ARGV[7], 10) then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
  redis.call('XDEL', KEYS[1], ARGV[2])
  redis.pcall('HDEL', KEYS[6], ARGV[2])
  if letter then redis.call('XADD', KEYS[7], '*', unpack(ARGV, 17)) end
  redis.call('UNLINK', KEYS[8])
  return 'dup'
end
local kind = redis.call('TYPE', KEYS[5]).ok
if kind ~= 'stream' and kind ~= 'none' then return {'wrongtype', KEYS[5]} end
if ARGV[14] == '1' and redis.call('EXISTS', KEYS[8]) == 0 then return 'unstaged' end
local layout
if ARGV[10] ~= '' then
  layout = redis.call('TYPE', KEYS[2]).ok
  if layout == 'string' then
    local document = redis.call('GET', KEYS[2])
    if ARGV[13] == '' or document ~= ARGV[12] then return {'conflict', document} end
  elseif layout ~= 'hash' and layout ~= 'none' then
    return {'wrongtype', KEYS[2]}
  end
end

-- The acknowledgement is first: after a write that needs no memory the rest is allowed at maxmemory too.
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
local journal = redis.call('DEL', KEYS[4])
if ARGV[14] == '1' then redis.call('RENAME', KEYS[8], KEYS[9]) end
-- Only a takeover or progress on record can have written a count.
if ARGV[4] ~= '1' or journal == 1 then redis.pcall('HDEL', KEYS[6], ARGV[2]) end
if layout == 'hash' then
  redis.call('HSET', KEYS[2], ARGV[10], ARGV[11])
  if ARGV[15] ~= '' then redis.call('HSET', KEYS[2], ARGV[15], ARGV[16]) end
  redis.call('PEXPIRE', KEYS[2], ARGV[8], 'GT')
elseif layout == 'string' then
  redis.call('SET', KEYS[2], ARGV[13], 'KEEPTTL')
  redis.call('PEXPIRE', KEYS[2], ARGV[8], 'GT')
end
seq = string.format('%.0f', seq + 1)
record_run(KEYS[3], ARGV[8], ARGV[5], ARGV[6], seq)
redis.call('XADD', KEYS[5], '*', 'data', ARGV[9], 'seq', seq)
if letter then redis.call('XADD', KEYS[7], '*', unpack(ARGV, 17)) end
return layout == 'none' and 'gone' or 'ok'
