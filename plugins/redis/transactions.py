"""Commit a transaction on a Redis server: one script compares what was read, then changes every key or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from hutch import CapabilityError, Commit, ValueLimitError

from .protocol import Argument
from .scripts import DEADLINE_FUNCTIONS, Script

if TYPE_CHECKING:
    from .server import Server
    from .storage import RedisPlugin

# Before Redis 7 a server takes about a million arguments in one command.
_MAX_KEYS: Final = 300_000
# KEYS: the four of each namespace, one after the other. ARGV: per namespace: the name, the number of expected values,
# as many times key, '1' for a value or '0' for none, value; then the same for the changes. An expired value is missing.
# A server whose memory is full refuses the first write of a script or none, so no change needs to be undone.
_APPLY: Final = Script(
    "local all, KEYS = KEYS, {}",
    DEADLINE_FUNCTIONS,
    "local at = 0",
    "local function following()",
    "  at = at + 1",
    "  return ARGV[at]",
    "end",
    "local function each_namespace(expect, change)",
    "  at = 0",
    "  for first = 1, #all, 4 do",
    "    for i = 1, 4 do KEYS[i] = all[first + i - 1] end",
    "    local name, changes = following(), 0",
    "    for _ = 1, tonumber(following()) do",
    "      if expect(following(), following() == '1', following()) then return true end",
    "    end",
    "    for _ = 1, tonumber(following()) do",
    "      change(following(), following() == '1', following())",
    "      changes = changes + 1",
    "    end",
    "    if changes > 0 then change(nil, false, name) end",
    "  end",
    "end",
    "local now, expires = nil, {}",
    "local function differs(key, exists, value)",
    "  local current = redis.call('HGET', KEYS[1], key)",
    "  if current == (exists and value) then return false end",
    "  local ms = not exists and deadline(current)",
    "  if not ms then return true end",
    "  now = now or time_ms()",
    "  return ms > now",
    "end",
    "local function check(key)",
    "  if not key then",
    "    redis.call('HLEN', KEYS[1]) redis.call('ZCARD', KEYS[2]) redis.call('SCARD', KEYS[3])",
    "    expires[KEYS[4]] = redis.call('ZCARD', KEYS[4]) > 0",
    "  end",
    "end",
    "local function change(key, exists, value)",
    "  if not key then",
    "    if redis.call('HLEN', KEYS[1]) > 0 then redis.call('SADD', KEYS[3], value) end",
    "    if expires[KEYS[4]] then reclaim(2) end",
    "  elseif exists then",
    "    if redis.call('HSET', KEYS[1], key, value) > 0 then redis.call('ZADD', KEYS[2], 0, key) end",
    "    local ms = deadline(value)",
    "    if ms then redis.call('ZADD', KEYS[4], ms, key) end",
    "    if expires[KEYS[4]] and not ms then redis.call('ZREM', KEYS[4], key) end",
    "  elseif redis.call('HDEL', KEYS[1], key) > 0 then",
    "    redis.call('ZREM', KEYS[2], key)",
    "    if expires[KEYS[4]] then redis.call('ZREM', KEYS[4], key) end",
    "  end",
    "end",
    "if each_namespace(differs, check) then return 0 end",
    "each_namespace(function() end, change)",
    "return 1",
)


def apply(plugin: RedisPlugin, commits: Mapping[str, Commit], server: Server) -> bool:
    """Apply `commits`, by namespace, in one step if everything they expect holds; return whether.

    `server` has all the namespaces. An expired frame counts as a missing key. Raises CapabilityError for ranges, and
    ValueLimitError for a transaction that is too large for one request; nothing is written then.
    """
    if any(commit.ranges for commit in commits.values()):
        raise CapabilityError(
            f"the {plugin.name} engine cannot check at a commit what was scanned (it lacks the capability `snapshot`); "
            "nothing was written. Read single keys in the transaction, or scan outside"
        )
    _validate_commits(plugin, commits)
    keys = [key for name in commits for key in plugin.servers.script_keys(name)]
    arguments = [argument for name, commit in commits.items() for argument in _arguments(name, commit)]
    changes = any(commit.changes for commit in commits.values())
    # With changes, not sent again: after a lost answer, a second attempt would find its own changes.
    return bool(server.run(_APPLY, keys, arguments, changes=changes, again=not changes))


def _arguments(name: str, commit: Commit) -> Iterator[Argument]:
    yield name.encode()
    # Values first: a node whose slot is moving ends a script that needs the hash again after its last key was removed.
    changes = dict(sorted(commit.changes.items(), key=lambda change: change[1] is None))
    for frames in (commit.expected, changes):
        yield len(frames)
        for key, frame in frames.items():
            yield key.encode()
            yield int(frame is not None)
            yield frame or b""


def validate_size(plugin: RedisPlugin, what: str, size: int) -> None:
    """Raise ValueLimitError if keys and values of `size` bytes are too many for one step: before anything is sent."""
    limit = plugin.max_transaction_bytes
    if size > limit:
        raise ValueLimitError(
            f"{what} has {size:,} bytes of keys and values, more than the {limit:,} of option max_transaction_bytes of "
            f"the {plugin.name} engine. Nothing was written. Use smaller parts, or raise the option if the server's "
            "client-query-buffer-limit, 1 GiB unless set, and its memory allow more"
        )


def _validate_commits(plugin: RedisPlugin, commits: Mapping[str, Commit]) -> None:
    parts = [frames for commit in commits.values() for frames in (commit.expected, commit.changes)]
    keys = sum(map(len, parts))
    if keys > _MAX_KEYS:
        raise ValueLimitError(
            f"a transaction read and wrote {keys:,} keys in the {plugin.name} engine: at most {_MAX_KEYS:,} fit in one "
            "step. Nothing was written; commit smaller parts"
        )
    size = sum(len(key) + len(frame or b"") for frames in parts for key, frame in frames.items())
    validate_size(plugin, "a transaction", size)
