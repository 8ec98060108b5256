-- List the states of an ident.
--
-- KEYS[1]  the ident's key
--
-- Returns for each state its class, the bytes of its state, and the ms until it expires.

local lock = redis.call('HMGET', key, 'owner', 'until', 'term', 'since')
local held = is_held(lock[1], lock[2], lock[3])
local reply = {}
for _, field in ipairs(redis.call('HKEYS', key)) do
  if string.sub(field, 1, 2) == 'd:' then
    local due = redis.call('HGET', key, field)
    if lives(due, held, lock[4]) then
      reply[#reply + 1] = string.sub(field, 3)
      reply[#reply + 1] = tonumber(string.sub(due, 16))
      reply[#reply + 1] = deadline_of(due) - now
    end
  end
end
return reply
