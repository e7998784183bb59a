"""The importable name of the module that runs as the program, under which other programs find its classes."""

from __future__ import annotations

import sys
from pathlib import Path

# multiprocessing runs the program again under the second name, in each process that it spawns.
MAIN_NAMES = frozenset({"__main__", "__mp_main__"})


def importable_name(module: str) -> str | None:
    """Return the name by which other programs import the main module called `module`, or None if they cannot.

    It is the name given to ``python -m``; for a script, the name by which an ``import`` finds its file, with the
    packages that the file lies in. Nothing is imported.
    """
    main = sys.modules.get(module)
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if type(name) is str and name not in MAIN_NAMES:
        return name
    file = getattr(main, "__file__", None)
    # What is typed at a prompt belongs to no file, whatever program started the prompt.
    if type(file) is not str or hasattr(sys, "ps1"):
        return None
    return _name_of(Path(file))


def _name_of(file: Path) -> str | None:
    try:
        file = file.resolve()
        parts = _parts_of(file)
    except OSError:
        return None
    if file.suffix != ".py" or not all(map(str.isidentifier, parts)) or parts[0] in MAIN_NAMES:
        return None
    # Within a package the folder above it need not be on sys.path: python -m would put it there.
    return ".".join(parts) if len(parts) > 1 or _is_importable_as(parts[0], file) else None


def _parts_of(file: Path) -> list[str]:
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return parts


def _is_importable_as(name: str, file: Path) -> bool:
    from importlib.machinery import PathFinder

    if name in sys.builtin_module_names:
        return False
    spec = PathFinder.find_spec(name)
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file
