"""Measure one target in this process: python -m benchmarks.measure NAME FOLDER ROUNDS. Prints the rounds."""

import json
import sys
from pathlib import Path

from . import yardsticks
from .targets import TARGETS

if __name__ == "__main__":
    name, folder, rounds = sys.argv[1:]
    print(json.dumps(getattr(yardsticks, TARGETS[name].function)(Path(folder), int(rounds))))
