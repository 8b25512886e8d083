-- Deletes a worker's entry in the registry if it was written by this instance.
-- KEYS  1 worker
-- ARGV  1 instance
-- Says  1 if it was ours
local entry = redis.pcall('GET', KEYS[1])
if type(entry) == 'string' and string.find(entry, ARGV[1], 1, true) then return redis.call('DEL', KEYS[1]) end
return 0
