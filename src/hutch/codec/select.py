"""Select the codec that a config names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError, nearest
from .codec import Codec
from .frame import JSON, MSGPACK, FrameCodec
from .msgpack import MsgpackCodec

_OPTIONS = {"msgpack": (), "json": (), "pickle": ("key", "prefer"), "passthrough": ("key",)}
_SHORTEST_KEY_BYTES = 16


def frame_codec_of(codec: Codec | None) -> FrameCodec:
    """Return the frames of `codec`; None means the default codec."""
    codec = codec or _msgpack
    make: type[FrameCodec] = getattr(codec, "frame_codec_class", FrameCodec)
    return make(codec, DATA_DECODERS)


def _decode_json(header: int, body: bytes) -> Any:
    from .json import JsonCodec

    return JsonCodec().decode(header, body)


_msgpack = MsgpackCodec()
#: From header byte to decoder: the frames that run no code and that every codec reads beside its own.
DATA_DECODERS = {MSGPACK: _msgpack.decode, JSON: _decode_json}


def is_built_in(name: str) -> bool:
    """Return whether `name` is a built-in codec."""
    return name in _OPTIONS


def unknown_codec(name: str, others: Iterable[str] = ()) -> ConfigError:
    """Return the error for a codec `name` that is neither built in nor one of `others`."""
    known = [*_OPTIONS, *sorted(others)]
    return ConfigError(f"CODEC: no codec is called {name!r}.{nearest(name, known)} Choose {', '.join(known)}")


def make_codec(name: str, options: Mapping[str, Any]) -> Codec:
    """Return the built-in codec `name`. Raises ConfigError for another name or a bad option."""
    if name not in _OPTIONS:
        raise unknown_codec(name)
    unknown = [option for option in options if option not in _OPTIONS[name]]
    if unknown:
        known = ", ".join(_OPTIONS[name]) or "no options"
        raise ConfigError(f"CODEC: {name} has no option {unknown[0]!r}; it takes {known}")
    if name == "msgpack":
        return _msgpack
    if name == "json":
        from .json import JsonCodec

        return JsonCodec()
    from .pickle import PickleCodec

    key = _key(options.get("key"))
    if name == "passthrough":
        from .passthrough import PassthroughCodec

        return PassthroughCodec(key)
    prefer = options.get("prefer")
    if prefer not in (None, "msgpack"):
        raise ConfigError(
            "CODEC: the option 'prefer' of pickle can only be msgpack: pickle is for what msgpack refuses"
        )
    return PickleCodec(key, prefer_typed=prefer is not None)


def _key(key: object) -> bytes | None:
    if isinstance(key, str):
        key = key.encode()
    if key is None or (isinstance(key, bytes) and len(key) >= _SHORTEST_KEY_BYTES):
        return key
    raise ConfigError(
        f"CODEC: the key of a signed pickle must be text or bytes of at least {_SHORTEST_KEY_BYTES} bytes; "
        'make one with python -c "import secrets; print(secrets.token_hex())"'
    )
