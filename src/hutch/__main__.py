"""`python -m hutch`: the same as the `hutch` command."""

from .cli import main

main()
