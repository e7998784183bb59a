"""Split a storage URL, ``scheme://rest?name=value&...``, without changing it or showing it in messages.

No general parser is used, because none preserves a path as people write it: `urllib` ends the path at a ``#``, turns
``+`` into a blank and lower-cases the host. Here ``rest`` is everything up to the first ``?``, unchanged, for the
engine to parse; ``%`` escapes stand for reserved characters (``%3F`` for ``?``).
"""

from __future__ import annotations

import re

from ..errors import ConfigError, redact

# Compiled on first use: opening a store needs only one or two of hutch's patterns.
_SCHEME = r"[A-Za-z][A-Za-z0-9+._-]{0,99}"
_OPTION_NAME = r"[A-Za-z_][A-Za-z0-9_.-]*"
_LONGEST_NAME = 60
_SLASH_DRIVE = r"/[A-Za-z]:[/\\]"


def split_url(text: str, where: str) -> tuple[str, str, dict[str, str]]:
    """Return the scheme as written, the otherwise unchanged URL without its query, and the decoded query options.

    `where` starts every message. Raises ConfigError for an invalid scheme, an option that is not ``name=value`` or
    is given twice, a bare ``@`` after the ``?``, an escape that is not UTF-8, and NUL. Messages show no part of the
    URL except the names of options.
    """
    url, _, query = text.partition("?")
    scheme, separator, _ = url.partition("://")
    is_plain = scheme.isascii() and scheme.isalpha() and len(scheme) <= _LONGEST_NAME  # spares compiling the pattern
    if not separator or not (is_plain or re.fullmatch(_SCHEME, scheme)):
        raise ConfigError(
            f"{where}: a storage URL starts with the name of a storage and '://', as in lmdb:///srv/state; a name has "
            "letters, digits and '+', '.', '_' or '-'"
        )
    if "\0" in text:
        raise ConfigError(f"{where}: a storage URL may not hold NUL")
    if "@" in query:
        # Most likely the "?" is part of a password, and the text after it is the rest of a secret.
        raise ConfigError(
            f"{where}: a storage URL may not hold a bare '@' after the first '?'; write a '?' in a password or a path "
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
    """Return the path in a file engine's URL: everything after ``://``, with ``%`` escapes decoded.

    ``lmdb:///srv/x`` gives ``/srv/x``, ``lmdb://data`` gives ``data``, and a Windows drive loses the slash before it:
    ``lmdb:///C:/x`` gives ``C:/x``. Escapes that are not UTF-8 become surrogates, which `os.fsencode` turns back
    into the same bytes. Expects a URL without query, such as `StoreConfig.url`. Raises ConfigError if `url` has
    no ``://`` or the path contains NUL.
    """
    _, separator, rest = url.partition("://")
    if not separator:
        raise ConfigError("a storage URL has '://' after its scheme, as in lmdb:///srv/state; this URL has none")
    path = _unquoted(rest, "surrogateescape")
    if "\0" in path:
        raise ConfigError("the path of a storage URL may not hold NUL (%00)")
    return path[1:] if path[2:3] == ":" and re.match(_SLASH_DRIVE, path) else path


def _unquoted(text: str, errors: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote  # here, because most URLs need none of it

    return unquote(text, errors=errors)


def shown_url(url: str) -> str:
    """Return `url`, which has no query, for messages: everything before the last ``@`` is hidden."""
    scheme, separator, rest = url.partition("://")
    _, at, host = rest.rpartition("@")
    return redact(f"{scheme}{separator}{'***' if at else ''}{at}{host}")


def shown_name(name: object) -> str:
    """Return the name of a key or an option, quoted for messages; truncated, and without a URL's credentials."""
    text = redact(str(name))
    return repr(text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "...")
