"""Move data between stores: `backup`, `copy`, `verify`, `dump` and `load`; and `to_json`, `from_json` for one value.

`backup`, `copy` and `dump` read one moment of the store where the engine can do that, and elsewhere each batch at its
own moment. `copy_items` and `verify_items` take items from any source in place of a store. All but `backup` stream,
hold at most one batch in memory, and work while the stores are in use. None of them ever removes anything.
"""

from ..codec.tagged_json import from_json, json_text, to_json, to_tagged
from .backups import backup
from .batches import Progress, Transferred
from .dumps import DUMP_VERSION, dump, load
from .stores import Difference, Verified, copy, copy_items, verify, verify_items

__all__ = [
    "DUMP_VERSION",
    "Difference",
    "Progress",
    "Transferred",
    "Verified",
    "backup",
    "copy",
    "copy_items",
    "dump",
    "from_json",
    "json_text",
    "load",
    "to_json",
    "to_tagged",
    "verify",
    "verify_items",
]
