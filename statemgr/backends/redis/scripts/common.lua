-- What the scripts share. It stands before each of them. The fields of the hash are described
-- in keys.py; all times are ms of this server's clock.
--
-- Whole numbers of up to 14 digits, which times in ms are, become text as they are.

local key = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- For how long a commit is known that was done, at least: nobody repeats one later, unless the
-- timeouts of a client are longer than half of it.
local MEMORY = 60000

-- A lock field, and what is in one.
local function lock_text(owner, until_, term, since, fence, kept, prune, wait)
  return owner .. ' ' .. until_ .. ' ' .. term .. ' ' .. since .. ' ' .. fence .. ' '
    .. kept .. ' ' .. prune .. ' ' .. wait
end

local function lock_of(text)
  if not text then return '', 0, 0, 0, 0, '0', 0, '' end
  return string.match(text, '^(%S*) (%d+) (%d+) (%d+) (%d+) (%d) (%d+) (.*)$')
end

-- Whether somebody has the lock. If the clock was set back, it is not held for longer than it
-- was granted for.
local function is_held(owner, until_, term)
  local left = until_ - now
  return owner ~= '' and left > 0 and left <= term * 2
end

-- A fence grows with each grant. The clock lets it grow also after the ident had expired.
local function fence_after(last)
  return string.format('%.0f', math.max(last + 1, clock[1] * 1e6 + clock[2]))
end

-- A state lives until its deadline; beyond it while the lock is held that was held then.
local function lives(due, held, since)
  if not due then return false end
  local deadline = tonumber(string.sub(due, 1, 15))
  return deadline > now or (held and deadline > tonumber(since))
end

-- What is in a d: field.
local function due_text(deadline, size)
  return string.format('%015.0f', deadline) .. size
end

-- Another d: field for the same state, whose deadline does not come sooner.
local function renewed(due, deadline)
  return due_text(math.max(deadline, tonumber(string.sub(due, 1, 15))), string.sub(due, 16))
end

local function waits(wait, owner)
  return string.find(' ' .. wait .. ' ', ' ' .. owner .. ' ', 1, true)
end

local function joined(wait, owner)
  if wait == '' then return owner end
  return wait .. ' ' .. owner
end

local function without(wait, owner)
  local others = {}
  for other in string.gmatch(wait, '%S+') do
    if other ~= owner then others[#others + 1] = other end
  end
  return table.concat(others, ' ')
end

local function tell(owner)
  local prefix = string.match(key, '^(.-):{')
  -- Not allowed to, it does no harm: a message saves time only, who waits looks by itself too.
  redis.pcall('PUBLISH', prefix .. ':inbox:' .. string.match(owner, '^[^.]+'), owner)
end

-- The lock as the first who waits has it, or nobody; and who that is. It has to take it up
-- within `claim`, or the next one gets it.
local function passed_on(since, fence, prune, wait, term, claim)
  local heir = string.match(wait, '^%S+')
  if not heir then return lock_text('', 0, term, since, fence, '0', prune, ''), nil end
  return lock_text(heir, now + claim, claim, since, fence_after(fence), '0', prune,
    without(wait, heir)), heir
end

-- Have the key live for `needed` at least, and for some more: so it is not set each time.
local function live_for(needed)
  if redis.call('PTTL', key) < needed then
    redis.call('PEXPIRE', key, math.ceil(needed * 1.25))
  end
end

-- Have a server without memory do the writes that follow: it looks at a script's first one only,
-- and this one it always does.
local function write_when_full()
  redis.call('HDEL', key, '')
end

-- unpack takes some thousands of values at most.
local SLICE = 1000

local function set_all(fields)
  for i = 1, #fields, SLICE do
    redis.call('HSET', key, unpack(fields, i, math.min(i + SLICE - 1, #fields)))
  end
end

local function remove_all(fields)
  for i = 1, #fields, SLICE do
    redis.call('HDEL', key, unpack(fields, i, math.min(i + SLICE - 1, #fields)))
  end
end

-- What is in a c: field: the number of a commit, when it was done, and the owner's own number.
local function mark_of(text)
  if not text then return 0, 0, '' end
  local number, at, owner = string.match(text, '^(%d+) (%d+) (.*)$')
  return tonumber(number), tonumber(at), owner
end

-- Remove what has expired: states, and marks of commits that nobody will repeat any more.
local function remove_expired(held, since, interval)
  local gone, states = {}, 0
  for _, field in ipairs(redis.call('HKEYS', key)) do
    local kind, name = string.sub(field, 1, 2), string.sub(field, 3)
    if kind == 'd:' then
      if lives(redis.call('HGET', key, field), held, since) then
        states = states + 1
      else
        gone[#gone + 1] = field
        gone[#gone + 1] = 's:' .. name
      end
    elseif kind == 'c:' then
      local done = redis.call('HGET', key, field)
      local _, at = mark_of(done)
      if now - at > interval then gone[#gone + 1] = field end
    end
  end
  remove_all(gone)
  if states == 0 and not held then redis.call('PEXPIRE', key, interval) end
end
