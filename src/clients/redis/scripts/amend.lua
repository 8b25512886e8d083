-- Takes note of what a call used of a limit that all workers share, and of what the provider said with its answer.
-- KEYS  1 limit, see reserve.lua
-- ARGV  1 era of the call's charge, 2 tokens used beyond the charge or, negative, below it, 3 how long nobody may ask,
--       4 how long until the allowance of requests is full at the earliest, 5 the same of tokens; all in microseconds
-- Says  1
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local had = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'closed', 'queue', 'era', 'line')
local requests, tokens = tonumber(had[1] or 0), tonumber(had[2] or 0)
local closed, queue, era = tonumber(had[3] or 0), tonumber(had[4] or 0), tonumber(had[5] or 0)
local used, shut = tonumber(ARGV[2]), tonumber(ARGV[3])
local requests_full, tokens_full = tonumber(ARGV[4]), tonumber(ARGV[5])
local function whole(number) return string.format('%.0f', number) end
if used > 0 then
  tokens = math.max(tokens, now) + used
elseif tonumber(ARGV[1]) == era then
  -- The charge of an earlier era was made good by time.
  tokens = math.max(tokens + used, 0)
end
if shut > 0 then closed = math.max(closed, now + shut) end
if requests_full > 0 then requests = math.max(requests, now + requests_full) end
if tokens_full > 0 and now + tokens_full > tokens then
  tokens, era = now + tokens_full, math.max(now, era + 1)
end
local life = math.max(requests, tokens, closed, queue) - now
for kept in string.gmatch(had[6] or '', ':(%d+):%d+:%d+:%d+') do life = math.max(life, tonumber(kept) - now) end
if life <= 0 then
  redis.call('DEL', KEYS[1])
else
  redis.call('HSET', KEYS[1], 'requests', whole(requests), 'tokens', whole(tokens), 'closed', whole(closed), 'era', whole(era))
  redis.call('PEXPIRE', KEYS[1], whole(life / 1000 + 1000))
end
return 1
