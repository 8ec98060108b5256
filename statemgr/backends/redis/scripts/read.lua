-- Read records, and renew their states.
--
-- KEYS[1]  the ident's key
-- ARGV[1]  after how long the states expire from now on, ms; 0 not to renew them
-- ARGV[2]  1 for the records, 0 for whether there are any
-- ARGV[3...] the classes
--
-- Returns for each class the record, or 1; nil where there is no state.

local expiration = tonumber(ARGV[1])
local fields = {'owner', 'until', 'term', 'since'}
for i = 3, #ARGV do
  fields[#fields + 1] = 'd:' .. ARGV[i]
  if ARGV[2] == '1' then fields[#fields + 1] = 's:' .. ARGV[i] end
end
local found = redis.call('HMGET', key, unpack(fields))
local held = is_held(found[1], found[2], found[3])

local reply, renewed = {}, {}
local step = ARGV[2] == '1' and 2 or 1
for i = 3, #ARGV do
  local due = found[5 + (i - 3) * step]
  if lives(due, held, found[4]) then
    reply[i - 2] = step == 1 and 1 or found[6 + (i - 3) * step]
    renewed[#renewed + 1] = 'd:' .. ARGV[i]
    renewed[#renewed + 1] = deadline_field(now + expiration, string.sub(due, 16))
  else
    reply[i - 2] = false
  end
end
if expiration > 0 and #renewed > 0 then
  redis.call('HSET', key, unpack(renewed))
  live_for(expiration)
end
return reply
