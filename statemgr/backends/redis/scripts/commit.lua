-- Write records under a lock, and keep the lock or pass it on. All or nothing.
--
-- KEYS[1]  the ident's key
-- ARGV[1]  the owner that has the lock
-- ARGV[2]  the number of this commit; numbers of one instance grow
-- ARGV[3]  what becomes of the lock: 'keep', or 'release' to pass it on
-- ARGV[4]  for how long a kept lock is renewed, ms
-- ARGV[5]  how long the first in the queue has to take up a lock that is passed to it, ms
-- ARGV[6]  after how long the states expire, ms
-- ARGV[7]  the owner that waits in the queue from now on, or empty
-- ARGV[8...] for each class: the class, its record, the size of its state in bytes. An empty
--          size: the state is as it was and is renewed. A size of '-': the state is dropped.
--
-- Returns {1, whether others wait (0 or 1)}; {0} if the owner does not have the lock any more:
-- then nothing was written. A commit that was done before, as after a lost reply, is not done
-- again and returns 1.

local me, number, claim = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[5])
local term, expiration, heir_of_mine = tonumber(ARGV[4]), tonumber(ARGV[6]), ARGV[7]
local mark = 'c:' .. string.match(me, '^[^.]+')
local lock = redis.call(
  'HMGET', key, 'owner', 'until', 'term', 'wait', 'fence', 'since', mark, 'prune')
local wait = lock[4] or ''

if lock[7] and tonumber(string.match(lock[7], '^%d+')) >= number then
  return {1, wait == '' and 0 or 1}
end
if lock[1] ~= me or not is_held(lock[1], lock[2], lock[3]) then return {0} end

local set, drop = {mark, ARGV[2] .. ':' .. digits(now)}, {}
local deadline = now + expiration
for i = 8, #ARGV, 3 do
  local state, due = 's:' .. ARGV[i], 'd:' .. ARGV[i]
  local size = ARGV[i + 2]
  if size == '-' then
    drop[#drop + 1] = state
    drop[#drop + 1] = due
  elseif size == '' then
    local before = redis.call('HGET', key, due)
    if lives(before, true, lock[6]) then
      set[#set + 1] = due
      set[#set + 1] = deadline_field(deadline, string.sub(before, 16))
    end
  else
    local n = #set
    set[n + 1], set[n + 2] = state, ARGV[i + 1]
    set[n + 3], set[n + 4] = due, deadline_field(deadline, size)
  end
end

local heir
if ARGV[3] == 'keep' then
  set[#set + 1], set[#set + 2] = 'until', digits(now + term)
  set[#set + 1] = 'term'
  set[#set + 1] = term
else
  if heir_of_mine ~= '' then
    wait = (wait ~= '' and wait .. ' ' or '') .. heir_of_mine
  end
  local fields
  heir, fields = passed_on(wait, lock[5], claim)
  for _, field in ipairs(fields) do set[#set + 1] = field end
end
if #drop > 0 then redis.call('HDEL', key, unpack(drop)) end
redis.call('HSET', key, unpack(set))
live_for(math.max(expiration, term * 2))
if heir then tell(heir) end
if not lock[8] then
  redis.call('HSET', key, 'prune', digits(now + expiration))
elseif tonumber(lock[8]) <= now or #drop > 0 then
  prune(ARGV[3] == 'keep' or heir, lock[6], term * 2)
end
return {1, wait == '' and 0 or 1}
