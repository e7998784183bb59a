"""Hooks of mkdocs for the site."""

from __future__ import annotations

import re
from typing import Any

_INLINE_CODE = re.compile(r"(?<!</span>)(?<!<pre>)<code>([^<]+)</code>")
# A longer word must be allowed to break on a telephone.
_WORD = re.compile(r"(?<!\S)\S{2,40}(?!\S)")


def on_page_content(html: str, **_: Any) -> str:
    """Hold each word of inline code together: a browser would end a line after the hyphens of `--verify`."""
    return _INLINE_CODE.sub(lambda code: f"<code>{_WORD.sub(_unbroken, code[1])}</code>", html)


def _unbroken(word: re.Match[str]) -> str:
    return f'<span class="word">{word[0]}</span>' if re.search(r"\W", word[0]) else word[0]
