-- Forgets the crashes of entries that do not exist any more.
-- KEYS  1 work stream, 2 crashes
-- ARGV  1… entries to look at
-- Says  how many were forgotten
local gone = 0
for _, entry in ipairs(ARGV) do
  local found = redis.pcall('XRANGE', KEYS[1], entry, entry)
  -- A name that is no id, a stream of another type: nothing is known, so nothing is forgotten.
  if not found.err and #found == 0 then gone = gone + redis.call('HDEL', KEYS[2], entry) end
end
return gone
