"""A storage URL: what its parts are, without losing or showing a character.

``scheme://rest?name=value&...``. No general parser is used, because none keeps a path as people write it: to
`urllib` a ``#`` ends the path, a ``+`` is a blank and the host is lower case. Here ``rest`` is everything up to
the first ``?``, untouched, for the engine to read; ``%`` escapes say what cannot be written (``%3F`` for ``?``).
"""

from __future__ import annotations

import re

from ..errors import ConfigError, redact

# Compiled when they are first used: opening a store needs one or two of all the patterns of hutch.
_SCHEME = r"[A-Za-z][A-Za-z0-9+._-]{0,99}"
_OPTION_NAME = r"[A-Za-z_][A-Za-z0-9_.-]*"
_LONGEST_NAME = 60
_SLASH_DRIVE = r"/[A-Za-z]:[/\\]"


def split_url(text: str, where: str) -> tuple[str, str, dict[str, str]]:
    """The scheme as written, the URL without its query and otherwise untouched, and the decoded query options.

    `where` starts every message. Raises ConfigError for a scheme that cannot be one, an option that is not
    ``name=value`` or comes twice, a bare ``@`` behind the ``?``, an escape that is not UTF-8, and NUL. No
    message shows a part of the URL, except names of options.
    """
    url, _, query = text.partition("?")
    scheme, separator, _ = url.partition("://")
    if not separator or not re.fullmatch(_SCHEME, scheme):
        raise ConfigError(
            f"{where}: a storage URL starts with the name of a storage and '://', as in lmdb:///srv/state; a name has "
            "letters, digits and '+', '.', '_' or '-'"
        )
    if "\0" in text:
        raise ConfigError(f"{where}: a storage URL may not hold NUL")
    if "@" in query:
        # Most likely the "?" stands in a password, and what follows it is no option but the rest of a secret.
        raise ConfigError(
            f"{where}: a storage URL may not hold a bare '@' behind the first '?'; write a '?' in a password or a path "
            "as %3F, and an '@' in an option as %40"
        )
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(_OPTION_NAME, name):
            raise ConfigError(
                f"{where}: what follows the '?' of a storage URL must be name=value, several joined by '&'; write a "
                "'?' in a password or a path as %3F, and an '&' in an option as %26"
            )
        if name in options:
            raise ConfigError(f"{where}: the storage URL gives the option {name!r} twice; give it once")
        try:
            options[name] = _unquoted(value, "strict")
        except UnicodeDecodeError:
            raise ConfigError(f"{where}: the option {name!r} of the storage URL is not UTF-8 once decoded") from None
        if "\0" in options[name]:
            raise ConfigError(f"{where}: the option {name!r} of the storage URL may not hold NUL")
    return scheme, url, options


def url_path(url: str) -> str:
    """The path that a file engine's URL names: all that follows ``://``, with ``%`` escapes decoded.

    ``lmdb:///srv/x`` is ``/srv/x``, ``lmdb://data`` is ``data``, and a Windows drive comes out bare:
    ``lmdb:///C:/x`` is ``C:/x``. Escapes that are not UTF-8 become the surrogates that `os.fsencode` turns back
    into the same bytes. Expects a URL without query, as `StoreConfig.url` is. Raises ConfigError if `url` has
    no ``://`` or the path holds NUL.
    """
    _, separator, rest = url.partition("://")
    if not separator:
        raise ConfigError("a storage URL has '://' behind its scheme, as in lmdb:///srv/state; this one has not")
    path = _unquoted(rest, "surrogateescape")
    if "\0" in path:
        raise ConfigError("the path of a storage URL may not hold NUL (%00)")
    return path[1:] if re.match(_SLASH_DRIVE, path) else path


def _unquoted(text: str, errors: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote  # here, because most URLs need none of it

    return unquote(text, errors=errors)


def shown_url(url: str) -> str:
    """`url`, without query, for people to read: whatever stands before the last ``@`` is hidden."""
    scheme, separator, rest = url.partition("://")
    _, at, host = rest.rpartition("@")
    return redact(f"{scheme}{separator}{'***' if at else ''}{at}{host}")


def shown_name(name: object) -> str:
    """The name of a key or an option, quoted for people to read; cut, and without credentials if it is a URL."""
    text = redact(str(name))
    return repr(text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "...")
