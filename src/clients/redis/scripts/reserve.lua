-- Lets a call begin where a limit that all workers share has room, or says when to ask again. Moments and amounts are
-- microseconds by the clock of the server, so that the workers' own clocks do not matter.
-- KEYS  1 limit: when its allowances of requests and tokens are full, until when nobody may ask (closed), up to when
--       calls were sent away (queue), when the allowance of tokens was last full (era), and the calls that wait for
--       their turn (line), in the order in which they came: who:kept until:begins by:requests:tokens,…
-- ARGV  1 longest wait on the spot, 2 cost of the request, 3 requests that may be saved up, 4 cost of the tokens,
--       5 tokens that may be saved up, 6 which call it is, 7 the longest wait it comes back from, 8 how far calls are
--       spread, 9 places in line, 10 how long one is kept beyond its moment, 11 the shortest wait in line, 12 what makes a
--       wait longer than the longest on the spot
-- Says  {1, wait, era}: it is charged and begins then | {0, wait}: it is not charged and asks again then
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local had = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'closed', 'queue', 'era', 'line')
local requests, tokens = tonumber(had[1] or 0), tonumber(had[2] or 0)
local closed, queue, era = tonumber(had[3] or 0), tonumber(had[4] or 0), tonumber(had[5] or 0)
local patience, me, returns, spread = tonumber(ARGV[1]), ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local request_cost, request_burst = tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens_cost, tokens_burst = tonumber(ARGV[4]), tonumber(ARGV[5])
local places, grace, shortest, moment = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local function whole(number) return string.format('%.0f', number) end
-- More than can be saved up is taken from a full allowance, which is then in debt.
local function from(full, cost, burst)
  if cost == 0 then return 0 end
  return full - math.max(burst - cost, 0)
end
local function after(full, start, cost)
  if cost == 0 then return full end
  return math.max(full, start) + cost
end
local line, place, stale = {}, nil, false
for who, kept, by, request, token in string.gmatch(had[6] or '', '(%x+):(%d+):(%d+):(%d+):(%d+)') do
  if tonumber(kept) > now then
    line[#line + 1] = {who, kept, by, request, token}
    if who == me then place = #line end
  else
    stale = true
  end
end
local ahead, earliest = (place or #line + 1) - 1, math.max(now, closed)
-- When each before this call could begin, one after the other, and what they leave.
local function begun(full_requests, full_tokens)
  local starts = {}
  for at = 1, ahead do
    local request, token = tonumber(line[at][4]), tonumber(line[at][5])
    starts[at] = math.max(earliest, from(full_requests, request, request_burst), from(full_tokens, token, tokens_burst))
    full_requests, full_tokens = after(full_requests, starts[at], request), after(full_tokens, starts[at], token)
  end
  return starts, full_requests, full_tokens
end
-- It may go first where nobody before it begins later for that than was said.
local fits = math.max(earliest, from(requests, request_cost, request_burst), from(tokens, tokens_cost, tokens_burst)) == now
local starts, full_requests, full_tokens = begun(requests, tokens)
if fits then
  local moved = begun(after(requests, now, request_cost), after(tokens, now, tokens_cost))
  for at = 1, ahead do
    fits = fits and moved[at] <= math.max(starts[at], tonumber(line[at][3]))
  end
end
local without_tokens = math.max(earliest, from(full_requests, request_cost, request_burst))
local start = fits and now or math.max(without_tokens, from(full_tokens, tokens_cost, tokens_burst))
local wait, answer = start - now, nil
if fits or (ahead == 0 and wait <= patience) then
  if place then
    table.remove(line, place)
    stale = true
  end
  if request_cost > 0 then
    requests = after(requests, start, request_cost)
    redis.call('HSET', KEYS[1], 'requests', whole(requests))
  end
  if tokens_cost > 0 then
    if tokens < start then era = start end
    tokens = after(tokens, start, tokens_cost)
    redis.call('HSET', KEYS[1], 'tokens', whole(tokens), 'era', whole(era))
  end
  answer = {1, wait, era}
else
  local least = wait > patience and patience + moment or 0
  local sooner = now + math.max(math.floor(wait / 2), least, shortest)
  local again = math.min(math.max(sooner, without_tokens), earliest + spread)
  -- Whoever comes back for it does so up to a tenth late, so that not all do at once.
  local kept = whole(again + math.floor((again - now) / 8) + grace)
  if returns < again - now then
    if place then
      table.remove(line, place)
      stale = true
    end
    answer = {0, wait}
  elseif place or #line < places then
    if place then
      line[place][2], line[place][3] = kept, whole(math.min(tonumber(line[place][3]), start))
    else
      line[#line + 1] = {me, kept, whole(start), ARGV[2], ARGV[4]}
    end
    stale, answer = true, {0, again - now}
  else
    -- Each is given a moment of its own, or all would come back at once for one place.
    local told = math.min(math.max(queue, again), again + spread)
    queue = told + math.max(request_cost, tokens_cost)
    redis.call('HSET', KEYS[1], 'queue', whole(queue))
    answer = {0, told - now}
  end
end
-- A limit that says no more than one that was never used goes by itself.
local life = math.max(requests, tokens, closed, queue) - now
if stale then
  local words = {}
  for at, waiting in ipairs(line) do words[at] = table.concat(waiting, ':') end
  if #words > 0 then
    redis.call('HSET', KEYS[1], 'line', table.concat(words, ','))
  else
    redis.call('HDEL', KEYS[1], 'line')
  end
end
for _, waiting in ipairs(line) do life = math.max(life, tonumber(waiting[2]) - now) end
if life > 0 then redis.call('PEXPIRE', KEYS[1], whole(life / 1000 + 1000)) end
return answer
