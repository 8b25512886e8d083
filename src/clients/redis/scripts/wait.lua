-- Takes an entry out of its stream until somebody has decided or it is too late, and asks: the questions stand in the
-- journal and in the index, each new one goes out as an event, and the node's state says that it waits.
-- KEYS  1 to 7 as in aside.lua, 8 index of questions, 9 events, 10… other work streams
-- ARGV  1 to 10 as in aside.lua, 11 moment in ms at which it is too late, 12 wait in ms after which it goes on all the
--       same ('' for none), 13 life in ms, 14 node's field in the state ('' writes no state), 15 node state,
--       16 document that was read, 17 document that replaces it (both '' if none was read),
--       18 header of a new journal, 19 '1' if everything in the journal goes, 20 events to keep,
--       21… for each question: id, field, question, field of its answer, event
-- Says  ok | gone | again | dup | lost | {conflict, document} | {wrongtype, key}
local verdict, data, other = leaving({[KEYS[7]] = 'hash', [KEYS[8]] = 'hash', [KEYS[9]] = 'stream'}, 10)
if verdict then return verdict end
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

acknowledge()
if other then return 'dup' end
if ARGV[19] == '1' then redis.call('DEL', KEYS[7]) end
redis.call('HSETNX', KEYS[7], 'hdr', ARGV[18])
local now = clock()
local due = tonumber(ARGV[11])
if ARGV[12] ~= '' then due = math.min(due, now + tonumber(ARGV[12])) end
for i = 21, #ARGV, 5 do
  if redis.call('HSETNX', KEYS[7], ARGV[i + 1], ARGV[i + 2]) == 1 then
    redis.call('HSET', KEYS[8], ARGV[i], ARGV[10])
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
set_aside(data, due)
return layout == 'none' and 'gone' or 'ok'
