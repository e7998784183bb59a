"""All promises as one class."""

from __future__ import annotations

from .conformance.batches import Batches
from .conformance.corruption import Corruption
from .conformance.durability import Durability
from .conformance.fairness import Fairness
from .conformance.fidelity import Fidelity
from .conformance.interrupts import Interrupts
from .conformance.isolation import Isolation
from .conformance.iteration import Iteration
from .conformance.lifecycle import Lifecycle
from .conformance.limits import Limits
from .conformance.mapping import MappingProtocol
from .conformance.processes import Processes
from .conformance.reentrancy import Reentrancy
from .conformance.scans import Scans
from .conformance.stateful import Stateful
from .conformance.threads import Threads
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
    Iteration,
    Batches,
    Updates,
    MappingProtocol,
    Lifecycle,
    Verbs,
):
    """Subclass it, give it a fixture `config`, and pytest runs every promise against that storage.

    `config` is any form that `hutch.connect` takes and that can be pickled. Every ``connect(config)`` within one
    test, from another process too where the engine is `shared` or `durable`, must reach the same data; each test
    must start with none. Promises that an engine does not make (see its `capabilities`) are skipped with the
    reason; there is nothing else to adapt. A storage that holds bytes, but is not a `hutch.EncodedStorage`, may
    define `corrupt`.
    """
