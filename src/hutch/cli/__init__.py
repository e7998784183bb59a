"""The `hutch` command, which needs the extra `cli`. docs/cli.md describes it."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command with the arguments of this process and exit with its exit code."""
    try:
        from .run import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("click", "rich"):
            raise
        print('hutch: the command line is not installed. Install it: pip install "hutch[cli]"', file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))
