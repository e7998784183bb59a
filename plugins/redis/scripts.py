"""The Lua scripts of the redis engine, each of which the server runs atomically.

A script that raises is not rolled back. So each script first reads every key that it will write, which raises if the
key holds foreign data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .protocol import Argument, Command


class Script:
    """A Lua script, which the server runs atomically."""

    def __init__(self, *lines: str) -> None:
        self.text = "\n".join(lines).encode()
        #: The script's name for EVALSHA.
        self.sha1 = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def by_name(self, keys: Sequence[bytes], arguments: Sequence[Argument]) -> Command:
        """Return the EVALSHA command, for a server that has run the script before."""
        return (b"EVALSHA", self.sha1, b"%d" % len(keys), *keys, *arguments)

    def in_full(self, keys: Sequence[bytes], arguments: Sequence[Argument]) -> Command:
        """Return the EVAL command, for any server."""
        return (b"EVAL", self.text, b"%d" % len(keys), *keys, *arguments)


#: The parts of a namespace, each under a key of the server.
PARTS = ("values", "order", "deadlines")
# KEYS of every script: values, order, index, deadlines.
_CHECK = "redis.call('HLEN', KEYS[1]) redis.call('ZCARD', KEYS[2]) redis.call('SCARD', KEYS[3])"
# For a script whose first write, or a read before it, is of the values. It counts the deadlines in place of the values,
# so that a namespace without deadlines costs no command more.
_CHECK_REST = """redis.call('ZCARD', KEYS[2]) redis.call('SCARD', KEYS[3])
local expires = redis.call('ZCARD', KEYS[4]) > 0"""
# A frame with a deadline begins with "T" and eight bytes of milliseconds, see docs/format.md. The sorted set of
# deadlines has that number as the score of the key. The frame decides: older versions of hutch leave scores behind.
_DEADLINE = """local function deadline(frame)
  if not frame or #frame < 15 or string.byte(frame) ~= 84 then return nil end
  local ms = 0
  for i = 2, 9 do ms = ms * 256 + string.byte(frame, i) end
  return ms
end"""
# Redis 4 lets a script write after TIME only after `replicate_commands`.
_CLOCK = f"""{_DEADLINE}
local function time_ms()
  if redis.replicate_commands then redis.replicate_commands() end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function is_expired(key, now)
  local score = redis.call('ZSCORE', KEYS[4], key)
  if not score or tonumber(score) > now then return false end
  local ms = deadline(redis.call('HGET', KEYS[1], key))
  return ms ~= nil and ms <= now
end"""
#: Lua functions. `reclaim` removes up to `limit` expired keys; it returns how many, and how many scores were due.
DEADLINE_FUNCTIONS = f"""{_CLOCK}
local function reclaim(limit)
  local now, removed = time_ms(), {{}}
  local due = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, limit)
  for i = 1, #due do
    local ms = deadline(redis.call('HGET', KEYS[1], due[i]))
    if ms and ms > now then
      redis.call('ZADD', KEYS[4], ms, due[i])
    else
      redis.call('ZREM', KEYS[4], due[i])
      if ms then removed[#removed + 1] = due[i] end
    end
  end
  if #removed > 0 then
    redis.call('HDEL', KEYS[1], unpack(removed))
    redis.call('ZREM', KEYS[2], unpack(removed))
  end
  return #removed, #due
end"""
# How many expired keys a write removes.
_RECLAIM_TWO = "if expires then reclaim(2) end"
# ARGV: namespace, then key, value, key, value ... A Lua call takes a few thousand arguments. The index is written
# every time, because it may have been evicted.
WRITE = Script(
    _CHECK_REST,
    DEADLINE_FUNCTIONS,
    "for first = 2, #ARGV, 1000 do",
    "  local last = math.min(first + 999, #ARGV)",
    "  if redis.call('HSET', KEYS[1], unpack(ARGV, first, last)) > 0 then",
    "    local listed = {}",
    "    for i = first, last, 2 do",
    "      listed[#listed + 1] = 0",
    "      listed[#listed + 1] = ARGV[i]",
    "    end",
    "    redis.call('ZADD', KEYS[2], unpack(listed))",
    "  end",
    "  if expires then",
    "    local names = {}",
    "    for i = first, last, 2 do names[#names + 1] = ARGV[i] end",
    "    redis.call('ZREM', KEYS[4], unpack(names))",
    "  end",
    "end",
    "redis.call('SADD', KEYS[3], ARGV[1])",
    _RECLAIM_TWO,
)
# ARGV: namespace, then key, value, key, value ... Some of the values have a deadline.
WRITE_UNTIL = Script(
    _CHECK_REST,
    DEADLINE_FUNCTIONS,
    "for i = 2, #ARGV, 2 do",
    "  if redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) > 0 then redis.call('ZADD', KEYS[2], 0, ARGV[i]) end",
    "  local ms = deadline(ARGV[i + 1])",
    "  if ms then redis.call('ZADD', KEYS[4], ms, ARGV[i]) else redis.call('ZREM', KEYS[4], ARGV[i]) end",
    "end",
    "redis.call('SADD', KEYS[3], ARGV[1])",
    _RECLAIM_TWO,
)
# ARGV: namespace, key ... If none of the keys has a value, they stay listed: the listing then shows an eviction.
# Returns how many of the keys existed and had not expired.
DELETE = Script(
    _CHECK_REST,
    DEADLINE_FUNCTIONS,
    "local deleted = 0",
    "local now = expires and time_ms()",
    "for first = 2, #ARGV, 1000 do",
    "  local last = math.min(first + 999, #ARGV)",
    "  if expires then",
    "    for i = first, last do",
    "      if is_expired(ARGV[i], now) then deleted = deleted - 1 end",
    "    end",
    "  end",
    "  local removed = redis.call('HDEL', KEYS[1], unpack(ARGV, first, last))",
    "  if removed > 0 then redis.call('ZREM', KEYS[2], unpack(ARGV, first, last)) end",
    "  if removed > 0 and expires then redis.call('ZREM', KEYS[4], unpack(ARGV, first, last)) end",
    "  deleted = deleted + removed",
    "end",
    _RECLAIM_TWO,
    "if redis.call('HLEN', KEYS[1]) > 0 then redis.call('SADD', KEYS[3], ARGV[1]) end",
    "return deleted",
)
# ARGV: namespace, key, '1' if an old value is expected, the old value, '1' if there is a new value, the new value.
SWAP = Script(
    _CHECK_REST,
    DEADLINE_FUNCTIONS,
    "local now = redis.call('HGET', KEYS[1], ARGV[2])",
    "if now ~= (ARGV[3] == '1' and ARGV[4]) then return 0 end",
    "local ms = ARGV[5] == '1' and deadline(ARGV[6])",
    "if ARGV[5] == '1' then",
    "  redis.call('HSET', KEYS[1], ARGV[2], ARGV[6])",
    "  if not now then redis.call('ZADD', KEYS[2], 0, ARGV[2]) end",
    "elseif now then",
    "  redis.call('HDEL', KEYS[1], ARGV[2])",
    "  redis.call('ZREM', KEYS[2], ARGV[2])",
    "end",
    "if ms then",
    "  redis.call('ZADD', KEYS[4], ms, ARGV[2])",
    "elseif expires then",
    "  redis.call('ZREM', KEYS[4], ARGV[2])",
    "end",
    _RECLAIM_TWO,
    "if redis.call('HLEN', KEYS[1]) > 0 then redis.call('SADD', KEYS[3], ARGV[1]) end",
    "return 1",
)
# ARGV: namespace, key, the CRC-32 of the key, the number to add, the number that a missing key starts from or ''.
# Returns the sum, or nil if the client must do it: the value is no MessagePack int, or beyond what a Lua number holds.
# A frame is 0x92, the packed int, 0xce and the CRC-32 (see docs/format.md). Ints have the shortest form, as hutch's.
INCREMENT = Script(
    _CHECK_REST,
    DEADLINE_FUNCTIONS,
    "local limit = 9007199254740992",
    "local function unsigned(text)",
    "  local number = 0",
    "  for i = 1, #text do number = number * 256 + string.byte(text, i) end",
    "  return number",
    "end",
    "local function big_endian(number, size)",
    "  local text = ''",
    "  for _ = 1, size do",
    "    text = string.char(number % 256) .. text",
    "    number = math.floor(number / 256)",
    "  end",
    "  return text",
    "end",
    "local function checksum(text)",
    "  local crc = bit.bnot(tonumber(ARGV[3]))",
    "  for i = 1, #text do",
    "    crc = bit.bxor(crc, string.byte(text, i))",
    "    for _ = 1, 8 do",
    "      crc = bit.bxor(bit.rshift(crc, 1), bit.band(0xEDB88320, -bit.band(crc, 1)))",
    "    end",
    "  end",
    "  return string.reverse(big_endian(bit.bnot(crc) % 4294967296, 4))",
    "end",
    "local function unpacked(text)",
    "  local kind = string.byte(text)",
    "  if #text == 1 and kind < 0x80 then return kind end",
    "  if #text == 1 and kind >= 0xe0 then return kind - 256 end",
    "  local is_signed = kind >= 0xd0 and kind <= 0xd3",
    "  if not is_signed and (kind < 0xcc or kind > 0xcf) then return nil end",
    "  local size = 2 ^ (kind % 4)",
    "  if #text ~= 1 + size then return nil end",
    "  local high, low = 0, unsigned(string.sub(text, 2))",
    "  if size == 8 then high, low = unsigned(string.sub(text, 2, 5)), unsigned(string.sub(text, 6)) end",
    "  local range = 256 ^ math.min(size, 4)",
    "  if is_signed and size == 8 and high >= range / 2 then high = high - range end",
    "  if is_signed and size < 8 and low >= range / 2 then low = low - range end",
    "  return high * 4294967296 + low",
    "end",
    "local function packed(number)",
    "  if number >= -32 and number < 128 then return string.char(number % 256) end",
    "  local kind = number < 0 and 0xd0 or 0xcc",
    "  local room = number < 0 and -2 * number or number + 1",
    "  for power = 0, 2 do",
    "    local size = 2 ^ power",
    "    if room <= 256 ^ size then return string.char(kind + power) .. big_endian(number, size) end",
    "  end",
    "  local high = math.floor(number / 4294967296)",
    "  return string.char(kind + 3) .. big_endian(high, 4) .. big_endian(number - high * 4294967296, 4)",
    "end",
    "local now, old = redis.call('HGET', KEYS[1], ARGV[2]), tonumber(ARGV[5])",
    "if now then",
    "  if #now < 7 or #now > 15 or string.byte(now) ~= 0x92 or string.byte(now, #now - 4) ~= 0xce then return nil end",
    "  if checksum(string.sub(now, 1, -5)) ~= string.sub(now, -4) then return nil end",
    "  old = unpacked(string.sub(now, 2, -6))",
    "end",
    "local sum = old and old + tonumber(ARGV[4])",
    "if not sum or math.abs(old) >= limit or math.abs(sum) >= limit then return nil end",
    "local frame = '\\146' .. packed(sum) .. '\\206'",
    "redis.call('HSET', KEYS[1], ARGV[2], frame .. checksum(frame))",
    "if not now then redis.call('ZADD', KEYS[2], 0, ARGV[2]) end",
    "redis.call('SADD', KEYS[3], ARGV[1])",
    _RECLAIM_TWO,
    "return sum",
)
# ARGV: namespace. UNLINK takes constant time at any size; the server frees the memory in the background.
CLEAR = Script(
    "redis.call('HLEN', KEYS[1]) redis.call('ZCARD', KEYS[2]) redis.call('ZCARD', KEYS[4])",
    "redis.call('SREM', KEYS[3], ARGV[1])",
    "redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[4])",
)
# ARGV: most keys. Removes expired keys. Returns how many, and how many scores were due.
RECLAIM = Script(_CHECK, DEADLINE_FUNCTIONS, "return {reclaim(tonumber(ARGV[1]))}")
# Returns the number of keys that have not expired.
COUNT = Script(
    _CLOCK,
    "local count = redis.call('HLEN', KEYS[1])",
    "if redis.call('ZCARD', KEYS[4]) == 0 then return count end",
    "return math.max(0, count - redis.call('ZCOUNT', KEYS[4], '-inf', time_ms()))",
)
# ARGV: key. Returns whether it exists and has not expired.
EXISTS = Script(
    _CLOCK,
    "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end",
    "if not redis.call('ZSCORE', KEYS[4], ARGV[1]) or not is_expired(ARGV[1], time_ms()) then return 1 end",
    "return 0",
)
# Returns whether some key is listed or has a value, and has not expired.
HAS_DATA = Script(
    _CLOCK,
    "local keys = math.max(redis.call('HLEN', KEYS[1]), redis.call('ZCARD', KEYS[2]))",
    "if keys > redis.call('ZCOUNT', KEYS[4], '-inf', time_ms()) then return 1 end",
    "return 0",
)
# ARGV: ZRANGEBYLEX or ZREVRANGEBYLEX, its two bounds, most keys, most values, bytes of values after which to stop.
# Returns a page of keys, the total of listed keys, the total of values, and the first values of the page; if no values
# were asked for with the keys, the keys of the page that have expired.
PAGE = Script(
    _CLOCK,
    "local keys = redis.call(ARGV[1], KEYS[2], ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])",
    "local values, bytes = {}, 0",
    "for i = 1, math.min(#keys, tonumber(ARGV[5]) or 0) do",
    "  if bytes >= tonumber(ARGV[6]) then break end",
    "  values[i] = redis.call('HGET', KEYS[1], keys[i])",
    "  if values[i] then bytes = bytes + #values[i] end",
    "end",
    "if ARGV[5] == 'expired' and redis.call('ZCARD', KEYS[4]) > 0 then",
    "  local now = time_ms()",
    "  local due = redis.call('ZCOUNT', KEYS[4], '-inf', now)",
    "  for i = 1, due > 0 and #keys or 0 do",
    "    if is_expired(keys[i], now) then values[#values + 1] = keys[i] end",
    "  end",
    "end",
    "return {keys, redis.call('ZCARD', KEYS[2]), redis.call('HLEN', KEYS[1]), values}",
)
# ARGV: namespace, cursor of HSCAN. Adds some of the keys with a value to the listing; returns the next cursor. Servers
# before Redis 7.4 have no NOVALUES; Redis 4 lets a script write after HSCAN only after `replicate_commands`.
REBUILD = Script(
    _CHECK,
    "if redis.replicate_commands then redis.replicate_commands() end",
    "local width = 1",
    "local page = redis.pcall('HSCAN', KEYS[1], ARGV[2], 'COUNT', 100, 'NOVALUES')",
    "if page.err then",
    "  width = 2",
    "  page = redis.call('HSCAN', KEYS[1], ARGV[2], 'COUNT', 100)",
    "end",
    "for i = 1, #page[2], width do redis.call('ZADD', KEYS[2], 0, page[2][i]) end",
    "if #page[2] > 0 then redis.call('SADD', KEYS[3], ARGV[1]) end",
    "return page[1]",
)
# ARGV: HSCAN or ZSCAN, which of KEYS, cursor. Returns the next cursor and keys; the values may be large.
NAMES = Script(
    "local page = redis.call(ARGV[1], KEYS[tonumber(ARGV[2])], ARGV[3], 'COUNT', 100)",
    "local names = {}",
    "for i = 1, #page[2], 2 do names[#names + 1] = page[2][i] end",
    "return {page[1], names}",
)
# ARGV: '1' to repair, then key ... Returns the keys with a value that are not listed, the listed keys without one, the
# keys whose deadline is not in the sorted set of deadlines, and the keys there without that deadline.
LISTED = Script(
    _CHECK,
    _DEADLINE,
    "local repair = ARGV[1] == '1'",
    "local unlisted, valueless, undated, stale = {}, {}, {}, {}",
    "for i = 2, #ARGV do",
    "  local value = redis.call('HGET', KEYS[1], ARGV[i])",
    "  local listed = redis.call('ZSCORE', KEYS[2], ARGV[i])",
    "  if value and not listed then",
    "    unlisted[#unlisted + 1] = ARGV[i]",
    "    if repair then redis.call('ZADD', KEYS[2], 0, ARGV[i]) end",
    "  elseif listed and not value then",
    "    valueless[#valueless + 1] = ARGV[i]",
    "    if repair then redis.call('ZREM', KEYS[2], ARGV[i]) end",
    "  end",
    "  local ms, score = deadline(value), redis.call('ZSCORE', KEYS[4], ARGV[i])",
    "  if ms and tonumber(score or -1) ~= ms then",
    "    undated[#undated + 1] = ARGV[i]",
    "    if repair then redis.call('ZADD', KEYS[4], ms, ARGV[i]) end",
    "  elseif score and not ms then",
    "    stale[#stale + 1] = ARGV[i]",
    "    if repair then redis.call('ZREM', KEYS[4], ARGV[i]) end",
    "  end",
    "end",
    "return {unlisted, valueless, undated, stale}",
)
# ARGV: namespace, '1' to repair. Returns whether a namespace with values is in the index.
INDEXED = Script(
    _CHECK,
    "if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 1 then return 1 end",
    "if ARGV[2] == '1' then redis.call('SADD', KEYS[3], ARGV[1]) end",
    "return 0",
)


def is_exact(number: float) -> bool:
    """Return whether `number` is an int that a Lua number holds exactly."""
    return type(number) is int and -(2**53) < number < 2**53
