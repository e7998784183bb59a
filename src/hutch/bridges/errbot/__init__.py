"""The state of an Errbot bot in hutch: ``STORAGE = "Hutch"`` in the bot's config.py. See docs/bridges/errbot.md.

Nothing here imports Errbot, so that a config.py can name `plugin_dir`.
"""

from __future__ import annotations

from pathlib import Path

#: The folder of the descriptor, for ``BOT_EXTRA_STORAGE_PLUGINS_DIR``. Errbot finds an installed hutch without it.
plugin_dir = str(Path(__file__).resolve().parent)
