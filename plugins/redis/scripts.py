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
