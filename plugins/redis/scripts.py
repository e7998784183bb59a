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
        return (b"EVALSHA", self.sha1, len(keys), *keys, *arguments)

    def in_full(self, keys: Sequence[bytes], arguments: Sequence[Argument]) -> Command:
        """Return the EVAL command, for any server."""
        return (b"EVAL", self.text, len(keys), *keys, *arguments)


# KEYS of every script: values, order, index.
_CHECK = "redis.call('HLEN', KEYS[1]) redis.call('ZCARD', KEYS[2]) redis.call('SCARD', KEYS[3])"
# ARGV: namespace, then key, value, key, value ... A Lua call takes a few thousand arguments. The index is written
# every time, because it may have been evicted.
WRITE = Script(
    _CHECK,
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
    "end",
    "redis.call('SADD', KEYS[3], ARGV[1])",
)
# ARGV: namespace, key ... If none of the keys has a value, they stay listed: the listing then shows an eviction.
DELETE = Script(
    _CHECK,
    "local deleted = 0",
    "for first = 2, #ARGV, 1000 do",
    "  local last = math.min(first + 999, #ARGV)",
    "  local found = redis.call('HDEL', KEYS[1], unpack(ARGV, first, last))",
    "  if found > 0 then redis.call('ZREM', KEYS[2], unpack(ARGV, first, last)) end",
    "  deleted = deleted + found",
    "end",
    "if redis.call('HLEN', KEYS[1]) > 0 then redis.call('SADD', KEYS[3], ARGV[1]) end",
    "return deleted",
)
# ARGV: namespace, key, '1' if an old value is expected, the old value, '1' if there is a new value, the new value.
SWAP = Script(
    _CHECK,
    "local now = redis.call('HGET', KEYS[1], ARGV[2])",
    "if now ~= (ARGV[3] == '1' and ARGV[4]) then return 0 end",
    "if ARGV[5] == '1' then",
    "  redis.call('HSET', KEYS[1], ARGV[2], ARGV[6])",
    "  if not now then redis.call('ZADD', KEYS[2], 0, ARGV[2]) end",
    "elseif now then",
    "  redis.call('HDEL', KEYS[1], ARGV[2])",
    "  redis.call('ZREM', KEYS[2], ARGV[2])",
    "end",
    "if redis.call('HLEN', KEYS[1]) > 0 then redis.call('SADD', KEYS[3], ARGV[1]) end",
    "return 1",
)
# ARGV: namespace, key, the CRC-32 of the key, the number to add, the number that a missing key starts from or ''.
# Returns the sum, or nil if the client must do it: the value is no MessagePack int, or beyond what a Lua number holds.
# A frame is 0x92, the packed int, 0xce and the CRC-32 (see docs/format.md). Ints have the shortest form, as hutch's.
INCREMENT = Script(
    _CHECK,
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
    "return sum",
)
# ARGV: namespace. UNLINK takes constant time at any size; the server frees the memory in the background.
CLEAR = Script(_CHECK, "redis.call('UNLINK', KEYS[1], KEYS[2])", "redis.call('SREM', KEYS[3], ARGV[1])")
# ARGV: ZRANGEBYLEX or ZREVRANGEBYLEX, its two bounds, most keys, most values, bytes of values after which to stop.
# Returns a page of keys, the total of listed keys, the total of values, and the first values of the page.
PAGE = Script(
    "local keys = redis.call(ARGV[1], KEYS[2], ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])",
    "local values, bytes = {}, 0",
    "for i = 1, math.min(#keys, tonumber(ARGV[5])) do",
    "  if bytes >= tonumber(ARGV[6]) then break end",
    "  values[i] = redis.call('HGET', KEYS[1], keys[i])",
    "  if values[i] then bytes = bytes + #values[i] end",
    "end",
    "return {keys, redis.call('ZCARD', KEYS[2]), redis.call('HLEN', KEYS[1]), values}",
)
# ARGV: namespace, cursor of HSCAN. Adds some of the keys with a value to the listing; returns the next cursor. Servers
# before Redis 7.4 have no NOVALUES; Redis 4 lets a script write after HSCAN only after `replicate_commands`.
REBUILD = Script(
    _CHECK,
    "if redis.replicate_commands then redis.replicate_commands() end",
    "local width = 1",
    "local found = redis.pcall('HSCAN', KEYS[1], ARGV[2], 'COUNT', 100, 'NOVALUES')",
    "if found.err then",
    "  width = 2",
    "  found = redis.call('HSCAN', KEYS[1], ARGV[2], 'COUNT', 100)",
    "end",
    "for i = 1, #found[2], width do redis.call('ZADD', KEYS[2], 0, found[2][i]) end",
    "if #found[2] > 0 then redis.call('SADD', KEYS[3], ARGV[1]) end",
    "return found[1]",
)
# ARGV: HSCAN or ZSCAN, which of KEYS, cursor. Returns the next cursor and keys; the values may be large.
NAMES = Script(
    "local found = redis.call(ARGV[1], KEYS[tonumber(ARGV[2])], ARGV[3], 'COUNT', 100)",
    "local names = {}",
    "for i = 1, #found[2], 2 do names[#names + 1] = found[2][i] end",
    "return {found[1], names}",
)
# ARGV: '1' to repair, then key ... Returns the keys with a value that are not listed, and the listed keys without one.
LISTED = Script(
    _CHECK,
    "local unlisted, valueless = {}, {}",
    "for i = 2, #ARGV do",
    "  local value = redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1",
    "  local listed = redis.call('ZSCORE', KEYS[2], ARGV[i])",
    "  if value and not listed then",
    "    unlisted[#unlisted + 1] = ARGV[i]",
    "    if ARGV[1] == '1' then redis.call('ZADD', KEYS[2], 0, ARGV[i]) end",
    "  elseif listed and not value then",
    "    valueless[#valueless + 1] = ARGV[i]",
    "    if ARGV[1] == '1' then redis.call('ZREM', KEYS[2], ARGV[i]) end",
    "  end",
    "end",
    "return {unlisted, valueless}",
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
