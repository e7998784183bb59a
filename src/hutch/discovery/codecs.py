"""Make a codec that is not built in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..codec.codec import Codec
from ..codec.frame import is_reserved
from ..errors import ConfigError, StoreError
from ..handlers import passes_through
from ..options import read_options
from .descriptor import PluginInfo
from .discovery import Discovery
from .load import error_text, load_codec, load_error


def build_codec(discovery: Discovery, name: str, options: Mapping[str, Any]) -> Codec:
    """Return the codec called `name` among the plugins `found`, made with `options`.

    Raises ConfigError for an unknown name or option, PluginConflictError if another codec has its name or one of its
    header bytes, PluginLoadError if it cannot be loaded.
    """
    info = discovery.find_codec(name)
    discovery.refuse_clash(info, info.headers)
    cls = load_codec(info)
    _validate_headers(info, cls)
    discovery.refuse_clash(info, cls.headers)
    return _construct(info, cls, read_options(options, cls.OPTIONS or {}, info.name, "codec"))


def _validate_headers(info: PluginInfo, cls: type[Codec]) -> None:
    headers = cls.headers
    if not isinstance(headers, bytes) or not headers:
        raise load_error(info, f"{cls.__name__}.headers must be the header bytes it writes, such as b'\\x80'")
    if info.headers and set(info.headers) != set(headers):
        raise load_error(
            info, f"{cls.__name__}.headers is {headers!r}, but [Codec] Headers names {info.headers!r}; they must agree"
        )
    for header in headers:
        if is_reserved(header):
            raise load_error(
                info, f"header byte 0x{header:02x} is reserved for hutch; choose one outside 0x40 to 0x5f, and not 0x92"
            )


def _construct(info: PluginInfo, cls: type[Codec], options: dict[str, Any]) -> Codec:
    try:
        return cls(**options)
    except StoreError:
        raise
    except (KeyError, ValueError) as error:
        if passes_through(error):
            raise
        raise ConfigError(f"CODEC: {info.name} did not accept its options: {error_text(error, options)}") from error
    except Exception as error:
        if passes_through(error):
            raise
        raise load_error(info, f"making it raised {error_text(error, options)}") from error
