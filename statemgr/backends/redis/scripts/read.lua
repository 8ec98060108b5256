-- Read records, and renew their states.
--
-- KEYS[1]  the ident's key
-- ARGV[1]  after how long the states expire from now on, ms; 0 not to renew them
-- ARGV[2]  1 for the records, 0 for whether there are any
-- ARGV[3...] the classes
--
-- Returns for each class the record, or 1; nil where there is no state.

local fields, wants_records = {'lock'}, ARGV[2] == '1'
for i = 3, #ARGV do
  fields[#fields + 1] = 'd:' .. ARGV[i]
  fields[#fields + 1] = wants_records and 's:' .. ARGV[i] or 'lock'
end
local found = redis.call('HMGET', key, unpack(fields))
local owner, until_, term, since = lock_of(found[1])
local held = is_held(owner, until_, term)

local expiration, reply, set = tonumber(ARGV[1]), {}, {}
for i = 2, #fields, 2 do
  if lives(found[i], held, since) then
    reply[i / 2] = wants_records and found[i + 1] or 1
    set[#set + 1] = fields[i]
    set[#set + 1] = renewed(found[i], now + expiration)
  else
    reply[i / 2] = false
  end
end
if expiration > 0 and #set > 0 then
  local done = redis.pcall('HSET', key, unpack(set))
  if type(done) == 'table' and done.err then
    write_when_full()
    redis.call('HSET', key, unpack(set))
  end
  live_for(expiration)
end
return reply
