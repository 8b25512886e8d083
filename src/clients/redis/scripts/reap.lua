-- Removes consumers of a group that hold nothing and have been silent for long. Deleting a consumer drops what it
-- holds, so the look and the deletion are one step.
-- KEYS  1 work stream
-- ARGV  1 group, 2 consumer that asks, 3 silence in ms
-- Says  the names of those that are gone
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
local gone = {}
-- A stream or group that is gone answers with an error, which has no elements.
for _, consumer in ipairs(consumers) do
  local facts = {}
  for i = 1, #consumer, 2 do facts[consumer[i]] = consumer[i + 1] end
  if facts.pending == 0 and facts.idle >= tonumber(ARGV[3]) and facts.name ~= ARGV[2] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], facts.name)
    gone[#gone + 1] = facts.name
  end
end
return gone
