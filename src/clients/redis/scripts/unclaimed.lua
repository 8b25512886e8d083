-- For a second look at an entry that is not ours any more: if Redis lost its last writes, it may stand in the stream
-- with nobody's name on it. Then nobody runs it, and whoever has its result may end it.
local pending_for = owned
owned = function(stream, group, entry, consumer, deliveries)
  if pending_for(stream, group, entry, consumer, deliveries) then return true end
  if redis.pcall('XPENDING', stream, group, entry, entry, 1)[1] then return false end
  local entries = redis.pcall('XRANGE', stream, entry, entry)
  return not entries.err and #entries > 0
end
