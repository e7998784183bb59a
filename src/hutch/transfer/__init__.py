"""Moving data between stores: `copy`, `verify`, `dump` and `load`; and `to_json`, `from_json` for one value.

All four stream in batches and hold no more than one batch in memory; all work while others use the stores, and
then give what each batch found, not one moment of the whole. None of them ever removes anything.
"""

from ..codec.tagged import from_json, json_text, to_json, to_tagged
from .batches import Progress, Transferred
from .dumps import DUMP_VERSION, dump, load
from .stores import Difference, Verified, copy, verify

__all__ = [
    "DUMP_VERSION",
    "Difference",
    "Progress",
    "Transferred",
    "Verified",
    "copy",
    "dump",
    "from_json",
    "json_text",
    "load",
    "to_json",
    "to_tagged",
    "verify",
]
