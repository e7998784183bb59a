"""Karma: one key for each name, its value a number."""
# Errbot has no types:
# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False

from __future__ import annotations

import threading
from typing import Any

from errbot import BotPlugin, botcmd


class Karma(BotPlugin):
    """Counts who is thanked how often."""

    _counting = threading.Lock()  # Errbot runs commands in several threads

    @botcmd
    def karma_up(self, msg: Any, args: str) -> str:
        """Thank a user: !karma up NAME"""
        name = args.strip()
        if not name:
            return "Thank whom? !karma up NAME"
        with self._counting:
            self[name] = self.get(name, 0) + 1
        return f"{name} has {self[name]} karma."

    @botcmd
    def karma_top(self, msg: Any, args: str) -> str:
        """Show who was thanked most: !karma top"""
        ranking = sorted(self.items(), key=lambda item: (-item[1], item[0]))
        return "\n".join(f"{name}: {score}" for name, score in ranking[:10]) or "Nobody has karma yet."
