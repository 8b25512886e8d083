-- Puts an entry into the journal of a run and renews the lease in the same step.
-- KEYS  1 work stream, 2 journal, 3 done, 4 crashes; where the entry refers to a whole result 5 its place,
--       6 index of the large outputs
-- ARGV  1 group, 2 entry, 3 consumer, 4 deliveries, 5 life in ms, 6 '1' if everything before goes,
--       7 '1' if the entry is progress, 8 header, 9 field, 10 value, 11 crashes before the entry was added again,
--       12 the whole result, 13 its name in the index, 14 when it is looked at
-- Says  ok | lost | {wrongtype, key}
if not owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]) then return 'lost' end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'hash' and kind ~= 'none' then return {'wrongtype', KEYS[2]} end
-- The renewal is first: after a write that needs no memory the rest is allowed at maxmemory too. An entry that was
-- deleted from the stream does not come back from it, and there is nothing to work on any more.
if #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[2], 'JUSTID') == 0 then return 'lost' end
if ARGV[6] == '1' then redis.call('DEL', KEYS[2]) end
if KEYS[5] then
  redis.call('SET', KEYS[5], ARGV[12], 'PX', ARGV[5])
  redis.pcall('ZADD', KEYS[6], ARGV[14], ARGV[13])
end
redis.call('HSET', KEYS[2], 'hdr', ARGV[8])
local added = redis.call('HSET', KEYS[2], ARGV[9], ARGV[10])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
-- The record tells whoever opens the run next to look for a journal, so it lives as long.
redis.pcall('PEXPIRE', KEYS[3], ARGV[5], 'GT')
if ARGV[7] == '1' and added > 0 then
  if ARGV[11] == '0' then
    redis.pcall('HDEL', KEYS[4], ARGV[2])
  else
    -- Those stand beside the item and cannot be taken back there, so the count starts as far below nothing.
    redis.pcall('HSET', KEYS[4], ARGV[2], '-' .. ARGV[11])
    redis.pcall('PEXPIRE', KEYS[4], ARGV[5])
  end
end
return 'ok'
