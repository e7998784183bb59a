"""Measure one target in this process: python -m benchmarks.measure NAME FOLDER ROUNDS. Prints the rounds."""

import json
import sys
from pathlib import Path

from . import opening, transactions, yardsticks
from .targets import TARGETS

if __name__ == "__main__":
    name, folder, rounds = sys.argv[1:]
    function = TARGETS[name].function
    module = next(each for each in (opening, transactions, yardsticks) if hasattr(each, function))
    print(json.dumps(getattr(module, function)(Path(folder), int(rounds))))
