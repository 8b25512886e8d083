-- Puts the answer to a question on record and lets its node be due at once, or only tells why a decision does not count.
-- A decision that came by a work stream is acknowledged in the same step.
-- KEYS  1 work stream of the decision, 2 crashes, 3 journal, 4 index of questions, 5 parked work of the node's stream,
--       6 events, 7 audit
-- ARGV  1 group, 2 entry of the decision ('' for none), 3 consumer, 4 deliveries, 5 '1' if it counts, 'late' if it does
--       because nobody decided in time, '0' if not, 6 wait id, 7 field of the question, 8 field of the answer,
--       9 answer, 10 moment in ms at which it is too late, 11 first entry of the node, 12 event, 13 events to keep,
--       14 line of the audit, 15 lines to keep
-- Says  ok | lost | changed (what the decision was judged by) | {wrongtype, key}
if ARGV[2] ~= '' and not owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]) then return 'lost' end
local counts, late = ARGV[5] ~= '0', ARGV[5] == 'late'
for i, wanted in ipairs({'stream', 'hash', 'hash', 'hash', 'zset', 'stream', 'stream'}) do
  -- A decision that does not count is told and touches nothing else.
  if i == 6 or (i > 2 and counts) then
    local kind = redis.call('TYPE', KEYS[i]).ok
    if kind ~= wanted and kind ~= 'none' then return {'wrongtype', KEYS[i]} end
  end
end
if counts then
  local open = redis.call('HEXISTS', KEYS[3], ARGV[7]) == 1 and redis.call('HEXISTS', KEYS[3], ARGV[8]) == 0
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  if not open or (now >= tonumber(ARGV[10])) ~= late then return 'changed' end
end
if ARGV[2] ~= '' then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
  redis.call('XDEL', KEYS[1], ARGV[2])
  redis.pcall('HDEL', KEYS[2], ARGV[2])
end
if counts then
  redis.call('HSET', KEYS[3], ARGV[8], ARGV[9])
  redis.call('HDEL', KEYS[4], ARGV[6])
  -- A node that finds its question too late is running, and need not be woken.
  if not late then redis.call('ZADD', KEYS[5], 'XX', '0', ARGV[11]) end
  redis.call('XADD', KEYS[7], 'MAXLEN', '~', ARGV[15], '*', 'data', ARGV[14])
end
redis.call('XADD', KEYS[6], 'MAXLEN', '~', ARGV[13], '*', 'data', ARGV[12])
return 'ok'
