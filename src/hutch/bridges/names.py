"""A framework's name as a part of a key. Frameworks allow any text; a key has at most 1,024 bytes, and parts."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from urllib.parse import unquote

#: What a hash begins with: no escaped name does.
HASHED = "%%"

# "/" and ":" part keys, "%" marks what is not as it was; the rest would look bad in a terminal or is no text.
_ESCAPED = re.compile("[/:%\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@lru_cache(maxsize=1024)
def in_key(name: str, most_bytes: int) -> str:
    """`name` as a part of a key, of at most `most_bytes` (70 or more): no other name's, and without ``/`` and ``:``.

    What a key cannot show is percent-encoded, as UTF-8. An empty name, or one that is too long then, is `HASHED` and
    its SHA-256: the name itself is to be kept in a value.
    """
    text = _ESCAPED.sub(lambda found: "".join(f"%{byte:02X}" for byte in _utf8(found[0])), name)
    if 0 < len(text.encode()) <= most_bytes:
        return text
    return HASHED + hashlib.sha256(_utf8(name)).hexdigest()


def named(part: str) -> str:
    """The name that `in_key` made `part` of, which must be none that was hashed."""
    return unquote(part, errors="surrogatepass")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
