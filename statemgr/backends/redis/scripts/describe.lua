-- List the states of an ident.
--
-- KEYS[1]  the ident's key
--
-- Returns for each state its class, the bytes of its state, and the ms until it expires.

local owner, until_, term, since = lock_of(redis.call('HGET', key, 'lock'))
local held = is_held(owner, until_, term)
local reply = {}
for _, field in ipairs(redis.call('HKEYS', key)) do
  if string.sub(field, 1, 2) == 'd:' then
    local due = redis.call('HGET', key, field)
    if lives(due, held, since) then
      reply[#reply + 1] = string.sub(field, 3)
      reply[#reply + 1] = tonumber(string.sub(due, 16))
      reply[#reply + 1] = tonumber(string.sub(due, 1, 15)) - now
    end
  end
end
return reply
