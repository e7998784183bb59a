"""The command `themis` with hutch's storage registered."""

from themis.cli import main

from . import storage as storage

if __name__ == "__main__":
    main()
