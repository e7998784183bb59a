"""All promises as one class."""

from __future__ import annotations

from .promises.batches import Batches
from .promises.corruption import Corruption
from .promises.durability import Durability
from .promises.fairness import Fairness
from .promises.fidelity import Fidelity
from .promises.interrupts import Interrupts
from .promises.isolation import Isolation
from .promises.iteration import Iteration
from .promises.lifecycle import Lifecycle
from .promises.limits import Limits
from .promises.mapping import MappingProtocol
from .promises.processes import Processes
from .promises.reentrancy import Reentrancy
from .promises.scans import Scans
from .promises.stateful import Stateful
from .promises.threads import Threads
from .promises.updates import Updates
from .promises.verbs import Verbs
from .promises.waits import Waits


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
