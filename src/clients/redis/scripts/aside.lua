-- The data of an entry; nil if somebody deleted it.
local function data_of(stream, entry)
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  if not found then return nil end
  for i = 1, #found[2], 2 do
    if found[2][i] == 'data' then return found[2][i + 1] end
  end
end

-- The server's clock in ms.
local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Puts a run aside until a moment. It stays its own, and neither the graph's state nor what belongs to it expires
-- meanwhile: the graph's runs that wait remember how long the state had to live, and the last one gives that back.
local function set_aside(run)
  redis.call('ZADD', run.parked, string.format('%.0f', run.due), run.first)
  redis.call('HSET', run.bodies, run.first, run.data, run.first .. ':meta', run.meta, run.first .. ':run', run.names)
  redis.call('HSET', run.done, run.field, run.record)
  local held = math.max(tonumber(redis.call('HGET', run.done, 'held') or 0) or 0, 0)
  local life = redis.call('PTTL', run.state)
  if held == 0 or life >= 0 then redis.call('HSET', run.done, 'kept', string.format('%.0f', life)) end
  redis.call('HSET', run.done, 'held', string.format('%.0f', held + 1))
  redis.call('PERSIST', run.done)
  redis.call('PERSIST', run.state)
  redis.call('PERSIST', run.journal)
end
