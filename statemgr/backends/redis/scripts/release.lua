-- Give up an ident's lock, or the place in the queue for it, and write no record.
--
-- KEYS[1]  the ident's key
-- ARGV[1]  the owner
-- ARGV[2]  how long the first in the queue has to take up a lock that is passed to it, ms
-- ARGV[3]  after how long the states expire, ms
-- ARGV[4...] classes whose states, where there are any, are renewed if the lock was held
--
-- Returns 1 if the owner had the lock, 2 if it waited, 0 if neither.

local me, claim, expiration = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lock = redis.call('HMGET', key, 'owner', 'until', 'term', 'wait', 'fence', 'since')
local wait = lock[4]

if lock[1] ~= me or not is_held(lock[1], lock[2], lock[3]) then
  if not waits(wait, me) then return 0 end
  redis.call('HSET', key, 'wait', without(wait, me))
  return 2
end

-- The first write is one that a server without memory does too; then it does the others.
redis.call('HDEL', key, 'kept')
local heir, set = passed_on(wait, lock[5], claim)
local deadline = digits(now + expiration)
for i = 4, #ARGV do
  local before = redis.call('HGET', key, 'd:' .. ARGV[i])
  if lives(before, true, lock[6]) then
    set[#set + 1] = 'd:' .. ARGV[i]
    set[#set + 1] = deadline_field(deadline, string.sub(before, 16))
    live_for(expiration)
  end
end
redis.call('HSET', key, unpack(set))
if heir then
  live_for(claim * 2)
  tell(heir)
end
return 1
