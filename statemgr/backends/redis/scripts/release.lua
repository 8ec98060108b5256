-- Give up an ident's lock, or the place in the queue for it, and write no record.
--
-- KEYS[1]  the ident's key
-- ARGV[1]  the owner
-- ARGV[2]  how long the first in the queue has to take up a lock that is passed to it, ms
-- ARGV[3]  after how long the states expire, ms
-- ARGV[4...] for each class whose state, where there is one, is renewed if the lock was held: the
--          class, and how many ms ago it was used
--
-- Returns 1 if the owner had the lock, 2 if it waited, 0 if neither.

local me, expiration = ARGV[1], ARGV[3]
local owner, until_, term, since, fence, kept, prune, wait =
  lock_of(redis.call('HGET', key, 'lock'))

if owner ~= me or not is_held(owner, until_, term) then
  if not waits(wait, me) then return 0 end
  write_when_full()
  redis.call('HSET', key, 'lock',
    lock_text(owner, until_, term, since, fence, kept, prune, without(wait, me)))
  return 2
end

local lock, heir = passed_on(since, fence, prune, wait, term, ARGV[2])
local set = {'lock', lock}
for i = 4, #ARGV, 2 do
  local due = redis.call('HGET', key, 'd:' .. ARGV[i])
  if lives(due, true, since) then
    set[#set + 1] = 'd:' .. ARGV[i]
    set[#set + 1] = renewed(due, now + expiration - ARGV[i + 1])
  end
end
write_when_full()
set_all(set)
if #set > 2 then live_for(tonumber(expiration)) end
if heir then
  live_for(ARGV[2] * 2)
  tell(heir)
end
return 1
