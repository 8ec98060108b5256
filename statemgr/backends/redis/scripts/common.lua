-- What the scripts share. It stands before each of them. The fields of the hash are described
-- in keys.py; all times are ms of this server's clock.

local key = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function digits(number)
  return string.format('%.0f', number)
end

-- A fence grows with each grant. The clock lets it grow also after the ident had expired.
local function fence_after(last)
  return digits(math.max((tonumber(last) or 0) + 1, clock[1] * 1e6 + clock[2]))
end

-- Whether somebody has the lock. If the clock was set back, it is not held for longer than it
-- was granted for.
local function is_held(owner, until_, term)
  return owner and owner ~= '' and tonumber(until_) > now
    and tonumber(until_) - now <= tonumber(term) * 2
end

-- What is in a d: field.
local function deadline_of(field)
  return tonumber(string.sub(field, 1, 15))
end

local function deadline_field(deadline, size)
  return string.format('%015.0f', deadline) .. size
end

-- A state lives until its deadline; beyond it while the lock is held that was held then.
local function lives(field, held, since)
  if not field then return false end
  local deadline = deadline_of(field)
  return deadline > now or (held and deadline > tonumber(since))
end

local function first_of(wait)
  return wait and string.match(wait, '^%S+')
end

local function without(wait, owner)
  local others = {}
  for other in string.gmatch(wait or '', '%S+') do
    if other ~= owner then others[#others + 1] = other end
  end
  return table.concat(others, ' ')
end

local function waits(wait, owner)
  return wait and string.find(' ' .. wait .. ' ', ' ' .. owner .. ' ', 1, true)
end

local function tell(owner)
  local prefix = string.match(key, '^(.-):{')
  redis.call('PUBLISH', prefix .. ':inbox:' .. string.match(owner, '^[^.]+'), owner)
end

-- The fields by which the first who waits gets the lock, or nobody. It has to take it up within
-- `claim`, or the next one gets it.
local function passed_on(wait, fence, claim)
  local heir = first_of(wait)
  if not heir then return nil, {'owner', '', 'wait', '', 'kept', ''} end
  return heir, {
    'owner', heir, 'fence', fence_after(fence), 'until', digits(now + claim), 'term', claim,
    'wait', without(wait, heir), 'kept', '',
  }
end

local function live_for(needed)
  if redis.call('PTTL', key) < needed then redis.call('PEXPIRE', key, digits(needed)) end
end

-- Remove what has expired: states, and marks of commits that nobody will repeat any more.
local function prune(held, since, interval)
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
      if now - tonumber(string.match(done, ':(%d+)')) > interval then gone[#gone + 1] = field end
    end
  end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  redis.call('HSET', key, 'prune', digits(now + interval))
  if states == 0 and not held then redis.call('PEXPIRE', key, digits(interval)) end
end
