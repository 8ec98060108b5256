-- Take an ident's lock, or a place in the queue for it.
--
-- KEYS[1]  the ident's key
-- ARGV[1]  the owner that asks
-- ARGV[2]  for how long the lock is granted, ms
-- ARGV[3]  how long the first in the queue has to take up a lock that is passed to it, ms
-- ARGV[4]  1 to wait in the queue if the lock is not free, 0 not to
-- ARGV[5]  1 to be told when somebody waits, else empty
-- ARGV[6...] classes whose records are wanted
--
-- Returns {1, fence, whether others wait (0 or 1), a record or nil for each class} if the lock
-- is the owner's: also if it was before, as after a lost reply. Else {0, ms that are left to
-- whoever has it}.

local me, term, claim = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lock = redis.call(
  'HMGET', key, 'owner', 'until', 'term', 'wait', 'fence', 'since', 'kept')
local owner, wait, fence, since = lock[1], lock[4], lock[5], lock[6]
local held = is_held(owner, lock[2], lock[3])

if held and owner ~= me then
  if ARGV[4] == '1' and not waits(wait, me) then
    wait = (wait and wait ~= '' and wait .. ' ' or '') .. me
    redis.call('HSET', key, 'wait', wait)
    live_for(term * 2)
  end
  if lock[7] == '1' then tell(owner) end
  return {0, tonumber(lock[2]) - now}
end

if not held then
  local heir = first_of(wait)
  if heir and heir ~= me then
    -- It has expired, and somebody else is before us.
    if ARGV[4] == '1' and not waits(wait, me) then wait = wait .. ' ' .. me end
    local _, fields = passed_on(wait, fence, claim)
    redis.call('HSET', key, 'since', digits(now), unpack(fields))
    live_for(term * 2)
    tell(heir)
    return {0, claim}
  end
  fence, since = fence_after(fence), digits(now)
  wait = heir and without(wait, me) or wait or ''
end

redis.call(
  'HSET', key, 'owner', me, 'fence', fence, 'since', since, 'until', digits(now + term),
  'term', term, 'wait', wait, 'kept', ARGV[5])
live_for(term * 2)

local reply = {1, fence, wait == '' and 0 or 1}
local classes = #ARGV - 5
if classes > 0 then
  local fields = {}
  for i = 1, classes do
    fields[2 * i - 1] = 's:' .. ARGV[5 + i]
    fields[2 * i] = 'd:' .. ARGV[5 + i]
  end
  local found = redis.call('HMGET', key, unpack(fields))
  for i = 1, classes do
    reply[3 + i] = lives(found[2 * i], true, since) and found[2 * i - 1]
  end
end
return reply
