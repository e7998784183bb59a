"""Measure one target in this process: python -m benchmarks.measure NAME FOLDER ROUNDS. Prints the rounds."""

import json
import sys
from importlib import import_module
from pathlib import Path

from . import opening, transactions, yardsticks
from .targets import TARGETS

if __name__ == "__main__":
    name, folder, rounds = sys.argv[1:]
    function = TARGETS[name].function
    if function.startswith("redis_"):
        # Not beside the others: it imports the driver and the tests' servers.
        module = import_module("benchmarks.redis_calls")
    else:
        module = next(each for each in (opening, transactions, yardsticks) if hasattr(each, function))
    print(json.dumps(getattr(module, function)(Path(folder), int(rounds))))
