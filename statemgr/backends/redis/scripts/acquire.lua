-- Take an ident's lock, or a place in the queue for it.
--
-- KEYS[1]  the ident's key
-- ARGV[1]  the owner that asks
-- ARGV[2]  for how long the lock is granted, ms
-- ARGV[3]  how long the first in the queue has to take up a lock that is passed to it, ms
-- ARGV[4]  1 to wait in the queue if the lock is not free, 0 not to
-- ARGV[5]  1 to be told when somebody waits, else 0
-- ARGV[6...] classes whose records are wanted
--
-- Returns {1, fence, whether others wait (0 or 1), a record or nil for each class} if the lock
-- is the owner's: also if it was before, as after a lost reply. Else {0, ms that are left to
-- whoever has it}.

local me, term = ARGV[1], ARGV[2]
local fields = {'lock'}
for i = 6, #ARGV do
  fields[#fields + 1] = 's:' .. ARGV[i]
  fields[#fields + 1] = 'd:' .. ARGV[i]
end
local found = redis.call('HMGET', key, unpack(fields))
local owner, until_, its_term, since, fence, kept, prune, wait = lock_of(found[1])
local held = is_held(owner, until_, its_term)

if held and owner ~= me then
  if ARGV[4] == '1' and not waits(wait, me) then
    redis.call('HSET', key, 'lock',
      lock_text(owner, until_, its_term, since, fence, kept, prune, joined(wait, me)))
    live_for(term * 2)
  end
  if kept == '1' then tell(owner) end
  return {0, until_ - now}
end

if not held then
  since = now
  if wait ~= '' then
    local heir = string.match(wait, '^%S+')
    if heir ~= me then
      -- It has expired, and somebody else is before us.
      if ARGV[4] == '1' and not waits(wait, me) then wait = joined(wait, me) end
      redis.call('HSET', key, 'lock', (passed_on(since, fence, prune, wait, term, ARGV[3])))
      live_for(term * 2)
      tell(heir)
      return {0, tonumber(ARGV[3])}
    end
    wait = without(wait, me)
  end
  fence = fence_after(fence)
end

redis.call('HSET', key, 'lock',
  lock_text(me, now + term, term, since, fence, ARGV[5], prune, wait))

local reply, outlived = {1, fence, wait == '' and 0 or 1}, false
for i = 3, #fields, 2 do
  reply[3 + (i - 1) / 2] = lives(found[i], true, since) and found[i - 1]
  -- The key lives for as long as each of its states.
  outlived = outlived or (found[i] and tonumber(string.sub(found[i], 1, 15)) > now + term * 2)
end
if not outlived then live_for(term * 2) end
return reply
