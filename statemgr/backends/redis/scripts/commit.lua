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
-- ARGV[8]  the number of a commit that this one must not be done without, or 0
-- ARGV[9]  the fence of the grant: an acquire that was sent again, and arrives late, may have
--          given the owner a newer one, since which others may have written
-- ARGV[10...] for each class: the class, its record, the size of its state in bytes, and how many
--          ms ago it was used: it expires from then on. An empty size: the state is as it was
--          and is renewed. A size of '-': the state is dropped.
--
-- Returns {1, whether others wait (0 or 1)}; {0} if the owner does not have the lock any more
-- under this fence: then nothing was written; {2} if the other commit was not done: nothing
-- either. A commit that was done before, as after a lost reply, is not done again and returns 1;
-- {3} if a later grant of the instance has left its mark since, so that nobody knows: it was done
-- before, or never. Commits of one owner are done in their order: each names the one before it
-- that may still be on its way.

local me, term, expiration = ARGV[1], ARGV[4], ARGV[6]
local instance, number = string.match(me, '^([^.]+)%.(.*)$')
local mark = 'c:' .. instance
local before = redis.call('HMGET', key, 'lock', mark)
local owner, until_, its_term, since, fence, kept, prune, wait = lock_of(before[1])

local done, _, doer = mark_of(before[2])
if done >= tonumber(ARGV[2]) then
  if doer ~= number then return {3} end
  -- Written again, so that a WAIT behind this waits for what was done before.
  redis.call('HSET', key, mark, before[2])
  return {1, wait == '' and 0 or 1}
end
if owner ~= me or fence ~= ARGV[9] or not is_held(owner, until_, its_term) then return {0} end
if ARGV[8] ~= '0' and (doer ~= number or done < tonumber(ARGV[8])) then return {2} end

local set, drop, due = {mark, ARGV[2] .. ' ' .. now .. ' ' .. number}, {}, nil
for i = 10, #ARGV, 4 do
  local class, size, deadline = ARGV[i], ARGV[i + 2], now + expiration - ARGV[i + 3]
  if size == '-' then
    drop[#drop + 1] = 's:' .. class
    drop[#drop + 1] = 'd:' .. class
  elseif size == '' then
    due = redis.call('HGET', key, 'd:' .. class)
    if lives(due, true, since) then
      set[#set + 1] = 'd:' .. class
      set[#set + 1] = renewed(due, deadline)
    end
  else
    local n = #set
    set[n + 1] = 's:' .. class
    set[n + 2] = ARGV[i + 1]
    set[n + 3] = 'd:' .. class
    set[n + 4] = due_text(deadline, size)
  end
end

local prunes = tonumber(prune) <= now
if prunes then prune = now + expiration end
local keeps, heir, lock = ARGV[3] == 'keep', nil, nil
if keeps then
  lock = lock_text(me, now + term, term, since, fence, kept, prune, wait)
else
  if ARGV[7] ~= '' then wait = joined(wait, ARGV[7]) end
  lock, heir = passed_on(since, fence, prune, wait, term, ARGV[5])
end
set[#set + 1] = 'lock'
set[#set + 1] = lock
remove_all(drop)
set_all(set)
live_for(math.max(expiration, term * 2, MEMORY))
if heir then tell(heir) end
if prunes or #drop > 0 then remove_expired(keeps or heir, since, math.max(term * 2, MEMORY)) end
return {1, wait == '' and 0 or 1}
