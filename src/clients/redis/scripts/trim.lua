-- Trims a stream of terminal events behind what every consumer group has acknowledged; one that no group reads keeps
-- approximately the newest ones.
-- KEYS  1 events
-- ARGV  1 length to keep while no group reads
-- Says  the number of entries that went
if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then return 0 end

local function before(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  if am ~= bm then return tonumber(am) < tonumber(bm) end
  return tonumber(as) < tonumber(bs)
end

local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
if #groups == 0 then return redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[1]) end
local oldest
for _, group in ipairs(groups) do
  local facts = {}
  for i = 1, #group, 2 do facts[group[i]] = group[i + 1] end
  local unread = facts['last-delivered-id']
  if facts.pending > 0 then
    -- The oldest entry that was delivered and is not acknowledged.
    unread = redis.call('XPENDING', KEYS[1], facts.name)[2]
  end
  if not oldest or before(unread, oldest) then oldest = unread end
end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', oldest)
