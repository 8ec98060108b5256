-- Renew an ident's lock.
--
-- KEYS[1]  the ident's key
-- ARGV[1]  the owner that has it
-- ARGV[2]  for how long it is renewed, ms
--
-- Returns {1, whether others wait (0 or 1)}; {0} if the owner does not have the lock any more.

local lock = redis.call('HMGET', key, 'owner', 'until', 'term', 'wait')
if lock[1] ~= ARGV[1] or not is_held(lock[1], lock[2], lock[3]) then return {0} end
local term = tonumber(ARGV[2])
redis.call('HSET', key, 'until', digits(now + term), 'term', term)
live_for(term * 2)
return {1, (lock[4] or '') == '' and 0 or 1}
