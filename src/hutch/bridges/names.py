"""Escape a framework's name for use in a key. Frameworks allow any text; a key has at most 1,024 bytes, and parts."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from urllib.parse import unquote

#: The prefix of a hash; no escaped name starts with it.
HASHED = "%%"

# "/" and ":" separate parts of a key, "%" marks an escape; the rest is unprintable or not valid text.
_ESCAPED = re.compile("[/:%\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@lru_cache(maxsize=1024)
def in_key(name: str, most_bytes: int) -> str:
    """Return `name` as a unique part of a key, of at most `most_bytes` (70 or more), without ``/`` and ``:``.

    Characters that a key cannot show are percent-encoded, as UTF-8. A name that is empty, or too long after that,
    becomes `HASHED` and its SHA-256: the caller must store the name itself in a value.
    """
    text = _ESCAPED.sub(lambda match: "".join(f"%{byte:02X}" for byte in _utf8(match[0])), name)
    if 0 < len(text.encode()) <= most_bytes:
        return text
    return HASHED + hashlib.sha256(_utf8(name)).hexdigest()


def named(part: str) -> str:
    """Return the name from which `in_key` made `part`, which must not be hashed."""
    return unquote(part, errors="surrogatepass")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
