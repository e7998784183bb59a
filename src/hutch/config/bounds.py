"""Bounds on a config in any form, the endings of its files, and messages of parsers without quotes from the file."""

from __future__ import annotations

import re

#: Most values in a config; an alias counts each time it is used.
MAX_NODES = 10_000
#: Deepest nesting of mappings and lists.
MAX_DEPTH = 32
#: The endings of config files.
SUFFIXES = (".yaml", ".yml", ".toml")
# Text that a parser quotes may be a secret. One or two characters (a stray '\t') are helpful and harmless.
_QUOTED = r"(?s)(['\"]).{3,}\1"


def unquoted(problem: object) -> str:
    """Return a parser's message without the text that it quotes from the file."""
    return re.sub(_QUOTED, "(...)", str(problem))
