"""Layout of Themis 4's data in hutch.

Three namespaces. A name from Themis (a run, a stage, a cache key) is part of a key, with unusual characters
percent-encoded; an empty or long one is ``%%`` and its SHA-256. The value holds the full name.

==================== =============================== ==========================================
namespace            key                             value
==================== =============================== ==========================================
themis/runs          RUN/events/SEQUENCE             the event, a dict with ``run_id``
themis/runs          RUN/snapshot                    the snapshot, a dict with ``run_id``
themis/blobs         sha256:DIGEST                   ``{"media_type": str, "payload": bytes}``
themis/stage_cache   STAGE/CACHE_KEY                 ``{"stage": str, "key": str, "payload": ...}``
==================== =============================== ==========================================

SEQUENCE has twelve digits and rises within a run. Themis's projections are not stored: they are computed from a run's
snapshot and events when read.
"""

from __future__ import annotations

from ..names import in_key

RUNS = "themis/runs"
BLOBS = "themis/blobs"
STAGE_CACHE = "themis/stage_cache"

_LONGEST_NAME_BYTES = 400  # two of them and the separator fit into a key


def run_prefix(run_id: str) -> str:
    """Return the prefix of a run's keys, which no other run shares."""
    return _name(run_id) + "/"


def snapshot_key(run_id: str) -> str:
    """Return the key of a run's snapshot."""
    return run_prefix(run_id) + "snapshot"


def events_prefix(run_id: str) -> str:
    """Return the prefix of the keys of a run's events."""
    return run_prefix(run_id) + "events/"


def event_key(run_id: str, sequence: int) -> str:
    """Return the key of one event; `sequence` is 1 or more."""
    return f"{events_prefix(run_id)}{sequence:012d}"


def sequence_of(key: str) -> int:
    """Return the sequence number in the key of an event."""
    return int(key.rpartition("/")[2])


def stage_key(stage: str, cache_key: str) -> str:
    """Return the key of one entry of the stage cache."""
    return f"{_name(stage)}/{_name(cache_key)}"


def _name(text: str) -> str:
    return in_key(text, _LONGEST_NAME_BYTES)
