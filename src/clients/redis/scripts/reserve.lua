-- Lets a call begin where a limit that all workers share has room, or says when to ask again. Moments and amounts are
-- microseconds by the clock of the server, so that the workers' own clocks do not matter.
-- KEYS  1 limit: when its allowances of requests and tokens are full, until when nobody may ask (closed), up to when
--       calls were sent away (queue), when the allowance of tokens was last full (era)
-- ARGV  1 longest wait on the spot, 2 cost of the request, 3 requests that may be saved up, 4 cost of the tokens,
--       5 tokens that may be saved up, 6 whether who is sent away returns, 7 how far they are spread
-- Says  {1, wait, era}: it is charged and begins then | {0, wait}: it is not charged and asks again then
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local had = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'closed', 'queue', 'era')
local requests, tokens = tonumber(had[1] or 0), tonumber(had[2] or 0)
local closed, queue, era = tonumber(had[3] or 0), tonumber(had[4] or 0), tonumber(had[5] or 0)
local patience, returns, spread = tonumber(ARGV[1]), ARGV[6] == '1', tonumber(ARGV[7])
local request_cost, request_burst = tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens_cost, tokens_burst = tonumber(ARGV[4]), tonumber(ARGV[5])
local function whole(number) return string.format('%.0f', number) end
-- More than can be saved up is taken from a full allowance, which is then in debt.
local function from(full, cost, burst)
  if cost == 0 then return 0 end
  return full - math.max(burst - cost, 0)
end
local start = math.max(now, closed, from(requests, request_cost, request_burst), from(tokens, tokens_cost, tokens_burst))
local wait, answer = start - now, nil
if wait > patience then
  if not returns then return {0, wait} end
  -- Each is given a moment of its own, or all would come back at once for the room of one.
  local told = math.min(math.max(queue, start), start + spread)
  queue = told + math.max(request_cost, tokens_cost)
  redis.call('HSET', KEYS[1], 'queue', whole(queue))
  answer = {0, told - now}
else
  if request_cost > 0 then
    requests = math.max(requests, start) + request_cost
    redis.call('HSET', KEYS[1], 'requests', whole(requests))
  end
  if tokens_cost > 0 then
    if tokens < start then era = start end
    tokens = math.max(tokens, start) + tokens_cost
    redis.call('HSET', KEYS[1], 'tokens', whole(tokens), 'era', whole(era))
  end
  answer = {1, wait, era}
end
-- A limit that says no more than one that was never used goes by itself.
local life = math.max(requests, tokens, closed, queue) - now
if life > 0 then redis.call('PEXPIRE', KEYS[1], whole(life / 1000 + 1000)) end
return answer
