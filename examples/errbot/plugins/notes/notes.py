"""Notes: a list of dicts, each with a time and a set, changed in place. Types come back as they were."""
# Errbot has no types:
# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

from errbot import BotPlugin, botcmd


class Notes(BotPlugin):
    """Remembers notes and their tags."""

    _writing = threading.Lock()  # Errbot runs commands in several threads

    @botcmd
    def note_add(self, msg: Any, args: str) -> str:
        """Remember something: !note add water the ferns #garden"""
        words = args.split()
        note = {
            "text": " ".join(word for word in words if not word.startswith("#")),
            "tags": {word[1:] for word in words if word.startswith("#")},
            "at": datetime.now(UTC),
            "by": str(msg.frm),  # as text: only a running bot can read the identifier itself back
        }
        with self._writing, self.mutable("notes", default=[]) as notes:
            notes.append(note)
        return f"Note {len(notes)} is stored."

    @botcmd
    def note_list(self, msg: Any, args: str) -> str:
        """Show all notes, or those with a tag: !note list garden"""
        tag = args.strip().removeprefix("#")
        shown = [note for note in self.get("notes", []) if not tag or tag in note["tags"]]
        return "\n".join(f"{note['at']:%Y-%m-%d %H:%M} {note['text']}" for note in shown) or "No such note."
