-- Renew an ident's lock.
--
-- KEYS[1]  the ident's key
-- ARGV[1]  the owner that has it
-- ARGV[2]  for how long it is renewed, ms
-- ARGV[3]  the fence of the grant, as in commit
--
-- Returns {1, whether others wait (0 or 1)}; {0} if the owner does not have the lock any more
-- under this fence.

local owner, until_, its_term, since, fence, kept, prune, wait =
  lock_of(redis.call('HGET', key, 'lock'))
if owner ~= ARGV[1] or fence ~= ARGV[3] or not is_held(owner, until_, its_term) then
  return {0}
end
local term = ARGV[2]
write_when_full()
redis.call('HSET', key, 'lock',
  lock_text(owner, now + term, term, since, fence, kept, prune, wait))
live_for(term * 2)
return {1, wait == '' and 0 or 1}
