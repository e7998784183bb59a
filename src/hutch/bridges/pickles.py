"""Turn the pickles of other programs' files into values, without running any of their code unless asked to."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

from hutch import CorruptValueError

from ..codec.msgpack import MsgpackCodec
from ..codec.pickled import Pickled
from ..deadlines import Expiring, with_deadline
from ..handlers import passes_through
from .errbot.plain_pickle import read_plain

_codec = MsgpackCodec()


def value_of(pickled: bytes | Expiring, where: str, *, unpickle: bool = False) -> Any:
    """Return the pickled value if it is made of types that hutch stores, otherwise the pickle (`Pickled`).

    The value of an `Expiring` pickle is an `Expiring` too. With `unpickle`, any other pickle is loaded, which runs its
    code. `where` begins the message of an error. Raises CorruptValueError for bytes that are not a pickle, and for a
    pickle that cannot be loaded.
    """
    if isinstance(pickled, Expiring):
        return with_deadline(value_of(pickled.value, where, unpickle=unpickle), pickled.deadline_ms)
    try:
        value = read_plain(pickled)
        _codec.encode(value)
        return value
    except Exception as error:
        if passes_through(error):
            raise
        # Whatever the reason, the application may be able to load it.
    if unpickle:
        return _load(pickled, where)
    try:
        for _ in pickletools.genops(pickled):
            pass
    except Exception as error:
        if passes_through(error):
            raise
        raise CorruptValueError(
            f"{where} is not a complete pickle ({type(error).__name__}); the file was damaged, restore it from a backup"
        ) from error
    return Pickled(pickled)


def _load(pickled: bytes, where: str) -> Any:
    try:
        return pickle.loads(pickled)
    except Exception as error:
        if passes_through(error):
            raise
        raise CorruptValueError(
            f"{where} cannot be unpickled ({type(error).__name__}): expected a pickle whose classes can be imported "
            "here. Put the folder of the application on PYTHONPATH, or leave out --unpickle"
        ) from error
