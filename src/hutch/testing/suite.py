"""StorageSuite: every promise of a storage."""

from __future__ import annotations

from .conformance.batches import Batches
from .conformance.corruption import Corruption
from .conformance.durability import Durability
from .conformance.fairness import Fairness
from .conformance.fidelity import Fidelity
from .conformance.increments import Increments
from .conformance.interrupts import Interrupts
from .conformance.isolation import Isolation
from .conformance.iteration import Iteration
from .conformance.lifecycle import Lifecycle
from .conformance.limits import Limits
from .conformance.mapping import MappingProtocol
from .conformance.processes import Processes
from .conformance.readers import Readers
from .conformance.reentrancy import Reentrancy
from .conformance.scans import Scans
from .conformance.snapshots import Snapshots
from .conformance.stateful import Stateful
from .conformance.threads import Threads
from .conformance.time_to_live import TimeToLive
from .conformance.transactions import Transactions
from .conformance.updates import Updates
from .conformance.verbs import Verbs
from .conformance.waits import Waits


class StorageSuite(
    Stateful,
    Durability,
    Interrupts,
    Reentrancy,
    Waits,
    Fairness,
    Processes,
    Threads,
    Corruption,
    Isolation,
    Limits,
    Fidelity,
    Scans,
    Snapshots,
    Iteration,
    Batches,
    TimeToLive,
    Increments,
    Updates,
    Transactions,
    MappingProtocol,
    Lifecycle,
    Readers,
    Verbs,
):
    """Every promise as a pytest test: subclass it and add a fixture `config`.

    `config` is any picklable form that `hutch.connect` takes. Every ``connect(config)`` within one test must reach the
    same data, from other processes too if the engine is `shared` or `durable`; each test must start with an empty
    storage. Promises that an engine does not make (see its `capabilities`) are skipped with the reason; nothing else
    needs adapting. For a storage of bytes that is not a `hutch.EncodedStorage`, define `corrupt`.
    """
