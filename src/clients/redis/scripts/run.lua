-- Whether a run's record belongs to another piece of work: it is done, or running and its entry still exists.
-- KEYS[1] and KEYS[first] to the last are the streams that can be looked into; in any other the entry counts as alive.
local function taken(record, work_id, first)
  if not record then return false end
  local kind, work, rest = string.match(record, '^(%a)\n([^\n]*)\n?(.*)$')
  if not kind then return false end
  if kind == 'd' then return true end
  if work == work_id then return false end
  local stream, entry = string.match(rest, '^([^\n]*)\n([^\n]*)$')
  if kind ~= 'r' or not stream then return true end
  local i = 1
  while KEYS[i] do
    if KEYS[i] == stream then
      local found = redis.pcall('XRANGE', stream, entry, entry)
      return not found.err and #found > 0
    end
    i = i == 1 and first or i + 1
  end
  return true
end

-- Writes a run's record; the hash lives at least as long as asked, and one that never expires stays so.
local function record_run(done, ttl, field, record, seq)
  local added
  if seq then
    added = redis.call('HSET', done, field, record, 'seq', seq)
  else
    added = redis.call('HSET', done, field, record)
  end
  if added > 0 and redis.call('HLEN', done) == added then
    redis.call('PEXPIRE', done, ttl)
  else
    redis.call('PEXPIRE', done, ttl, 'GT')
  end
end
