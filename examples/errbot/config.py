"""The config of an Errbot bot that runs in a terminal and keeps its state in hutch. README.md has the commands."""

import logging
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
DATA.mkdir(exist_ok=True)

BACKEND = "Text"
BOT_ADMINS = ("@admin",)
BOT_DATA_DIR = str(DATA)
BOT_EXTRA_PLUGIN_DIR = str(HERE / "plugins")
BOT_LOG_FILE = str(DATA / "errbot.log")
BOT_LOG_LEVEL = logging.INFO

# All that hutch needs. Another engine is another URL.
STORAGE = "Hutch"
STORAGE_CONFIG = {"url": f"lmdb://{DATA / 'state'}"}
