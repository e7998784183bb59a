"""Moving data between stores: `copy`, `verify`, `dump` and `load`; and `to_json`, `from_json` for one value.

`copy_items` and `verify_items` do with items from anywhere what `copy` and `verify` do with a store's. All stream in
batches and hold no more than one batch in memory; all work while others use the stores, and then give what each batch
found, not one moment of the whole. None of them ever removes anything.
"""

from ..codec.tagged_json import from_json, json_text, to_json, to_tagged
from .batches import Progress, Transferred
from .dumps import DUMP_VERSION, dump, load
from .stores import Difference, Verified, copy, copy_items, verify, verify_items

__all__ = [
    "DUMP_VERSION",
    "Difference",
    "Progress",
    "Transferred",
    "Verified",
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
