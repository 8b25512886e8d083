-- Takes entries over from the consumers that were seen to have them; each delivery count goes up by one.
-- KEYS  1 work stream, 2 crashes
-- ARGV  1 group, 2 consumer that takes, 3 least idle time in ms, 4 '1' if a process died with them,
--       5 life of the crash counts in ms, 6… entries, owners and delivery counts in turn
-- Says  {{entry, deliveries, crashes, fields}, …}, or {wrongtype, key}
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'hash' and kind ~= 'none' then return {'wrongtype', KEYS[2]} end
local taken = {}
for i = 6, #ARGV, 3 do
  local entry = ARGV[i]
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], entry, entry, 1)[1]
  if pending and pending[2] == ARGV[i + 1] and pending[4] == tonumber(ARGV[i + 2]) and pending[3] >= tonumber(ARGV[3]) then
    local claimed = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, entry)[1]
    if claimed then
      local crashes
      if ARGV[4] == '1' then
        crashes = redis.pcall('HINCRBY', KEYS[2], entry, 1)
        if type(crashes) ~= 'number' then
          -- What stands there is no count. The entry is ours by now, so this may not break off.
          crashes = 1
          redis.call('HSET', KEYS[2], entry, crashes)
        end
        redis.call('PEXPIRE', KEYS[2], ARGV[5])
      else
        crashes = tonumber(redis.call('HGET', KEYS[2], entry) or 0) or 0
      end
      taken[#taken + 1] = {entry, pending[4] + 1, crashes, claimed[2]}
    else
      -- The entry was deleted from the stream, and XCLAIM has just cleared its place in the pending list.
      redis.call('HDEL', KEYS[2], entry)
    end
  end
end
return taken
