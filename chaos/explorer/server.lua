-- What of a Redis server the scripts of statemgr touch: hashes, the keys' TTLs, TIME and PUBLISH.
--
-- It is written in Lua and not in Python because the scripts run here: a call crosses from one
-- language to the other once, not once for each command. A script has the globals that Redis gives
-- it and no others, and may make none. tests/chaos/test_explorer.py compares it with real servers.

local keys = {} -- key -> {values = {field -> value}, fields = {field, ...} in the order of making}
local expires = {} -- key -> ms
local seconds, microseconds, now = 0, 0, 0
local published = {} -- channel, message, channel, message ...
local written = {} -- field, value or false, field, value or false ...
local compiled = {}
local refused = {} -- marks an error that a command has raised

-- As Redis turns the numbers that a script gives a command into text.
local function text(value)
  if type(value) == 'number' then return string.format('%.17g', value) end
  if type(value) ~= 'string' then
    error({refused, 'ERR Lua redis lib command arguments must be strings or integers'})
  end
  return value
end

local function whole(value)
  local number = tonumber(value)
  if number == nil or number ~= math.floor(number) or not string.match(text(value), '^-?%d+$') then
    error({refused, 'ERR value is not an integer or out of range'})
  end
  return number
end

local function found(key)
  local due = expires[key]
  if due and now > due then
    keys[key], expires[key] = nil, nil
    written[#written + 1] = ''
    written[#written + 1] = false
  end
  return keys[key]
end

local commands = {}

function commands.TIME() return {string.format('%.0f', seconds), string.format('%.0f', microseconds)} end

function commands.HGET(key, field)
  local hash = found(key)
  return hash and hash.values[text(field)] or false
end

function commands.HMGET(key, ...)
  local hash, reply = found(key), {}
  for i = 1, select('#', ...) do
    reply[i] = hash and hash.values[text(select(i, ...))] or false
  end
  return reply
end

function commands.HKEYS(key)
  local hash, reply = found(key), {}
  if hash then
    for i, field in ipairs(hash.fields) do reply[i] = field end
  end
  return reply
end

function commands.HSET(key, ...)
  local given = {...}
  if #given == 0 or #given % 2 ~= 0 then
    error({refused, "ERR wrong number of arguments for 'hset' command"})
  end
  local hash, new = found(key), 0
  if not hash then
    hash = {values = {}, fields = {}}
    keys[key] = hash
  end
  for i = 1, #given, 2 do
    local field, value = text(given[i]), text(given[i + 1])
    if hash.values[field] == nil then
      new = new + 1
      hash.fields[#hash.fields + 1] = field
    end
    hash.values[field] = value
    if string.sub(field, 1, 2) == 's:' then
      written[#written + 1] = field
      written[#written + 1] = value
    end
  end
  return new
end

function commands.HDEL(key, ...)
  local hash, gone = found(key), 0
  if not hash then return 0 end
  for i = 1, select('#', ...) do
    local field = text(select(i, ...))
    if hash.values[field] ~= nil then
      gone = gone + 1
      hash.values[field] = nil
      for at, other in ipairs(hash.fields) do
        if other == field then
          table.remove(hash.fields, at)
          break
        end
      end
    end
    if string.sub(field, 1, 2) == 's:' then
      written[#written + 1] = field
      written[#written + 1] = false
    end
  end
  if #hash.fields == 0 then keys[key], expires[key] = nil, nil end
  return gone
end

function commands.PTTL(key)
  if not found(key) then return -2 end
  return expires[key] and expires[key] - now or -1
end

function commands.PEXPIRE(key, ms)
  if not found(key) then return 0 end
  expires[key] = now + whole(ms)
  return 1
end

function commands.PUBLISH(channel, message)
  published[#published + 1] = text(channel)
  published[#published + 1] = text(message)
  return 0
end

local function call(name, ...)
  local command = commands[string.upper(name)]
  if not command then error({refused, 'ERR Unknown Redis command called from script'}) end
  return command(...)
end

local function pcall_(...)
  local done, reply = pcall(call, ...)
  if done then return reply end
  if type(reply) == 'table' and reply[1] == refused then return {err = reply[2]} end
  error(reply, 0)
end

local sandbox = {
  redis = {call = call, pcall = pcall_},
  string = string, math = math, table = table,
  tonumber = tonumber, tostring = tostring, type = type, unpack = unpack, select = select,
  ipairs = ipairs, pairs = pairs, next = next, error = error, assert = assert, pcall = pcall,
}
setmetatable(sandbox, {
  __index = function(_, name)
    error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
  end,
  __newindex = function() error('Attempt to modify a readonly table', 2) end,
})

-- As Redis turns what a script returns into a reply.
local function encoded(value, parts)
  local kind = type(value)
  if kind == 'string' then
    parts[#parts + 1] = '$' .. #value .. '\r\n' .. value .. '\r\n'
  elseif kind == 'number' then
    local cut = value < 0 and math.ceil(value) or math.floor(value)
    parts[#parts + 1] = ':' .. string.format('%.0f', cut) .. '\r\n'
  elseif kind == 'table' and value.err then
    parts[#parts + 1] = '-' .. value.err .. '\r\n'
  elseif kind == 'table' then
    local size = 0
    while value[size + 1] ~= nil do size = size + 1 end
    parts[#parts + 1] = '*' .. size .. '\r\n'
    for i = 1, size do encoded(value[i], parts) end
  elseif value == true then
    parts[#parts + 1] = ':1\r\n'
  else
    parts[#parts + 1] = '$-1\r\n'
  end
  return parts
end

local server = {}

function server.compile(source)
  local script = assert(loadstring('local KEYS, ARGV = ...; ' .. source))
  setfenv(script, sandbox)
  compiled[#compiled + 1] = script
  return #compiled
end

function server.reset() keys, expires = {}, {} end

-- Run a script at a moment. Returns the reply; the lock field before and after, or false; the
-- records that were written, and the messages that were published, each nil if there are none.
function server.run(script, s, us, key, ...)
  seconds, microseconds = s, us
  now = s * 1000 + math.floor(us / 1000)
  if #published > 0 then published = {} end
  if #written > 0 then written = {} end
  local hash = found(key)
  local before = hash and hash.values.lock or false
  local done, reply = pcall(compiled[script], {key}, {...})
  if not done then
    local message = type(reply) == 'table' and reply[2] or 'ERR ' .. tostring(reply)
    reply = {err = (string.gsub(message, '[\r\n]', ' '))}
  end
  hash = keys[key]
  return table.concat(encoded(reply, {})), before, hash and hash.values.lock or false,
    #written > 0 and written or nil, #published > 0 and published or nil
end

-- What is in a key: its TTL in ms, and fields and values in turn.
function server.dump(key)
  local hash = keys[key]
  if not hash then return false end
  local all = {expires[key] and expires[key] - now or -1}
  for _, field in ipairs(hash.fields) do
    all[#all + 1] = field
    all[#all + 1] = hash.values[field]
  end
  return unpack(all)
end

return server
