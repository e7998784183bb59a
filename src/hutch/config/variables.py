"""Expand ``${NAME}`` and ``${NAME:-default}`` in the text of a config."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import ConfigError

# A plain "${" written as "$${", a variable, or a "${" that is neither.
_VARIABLE = r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>(?:(?!\$\{)[^}])*))?\}|\$\{"


def without_variables(text: str) -> str:
    """Return `text` with its variables removed."""
    return re.sub(_VARIABLE, "", text) if "${" in text else text


def expand(text: str, environ: Mapping[str, str], where: str, refused: str = "") -> str:
    """Return `text` with its variables replaced by their values, and every ``$${`` by ``${``.

    A default applies if the variable is unset or empty. Values are not expanded again and never shown.
    `where` starts every message. Raises ConfigError for a variable that is unset and has no default, a ``${`` that
    does not start a variable, and a value that contains one of the characters in `refused`.
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name, default = match["name"], match["default"]
        if name is None:
            raise ConfigError(
                f"{where}: a '${{' that starts no variable; write ${{NAME}} or ${{NAME:-default}}, whose default holds "
                "no variable, or $${ for a plain ${"
            )
        variable = environ.get(name)
        if default is not None:
            variable = variable or default
        if variable is None:
            raise ConfigError(
                f"{where}: the environment variable {name} is not set; set it, or write a default: ${{{name}:-...}}"
            )
        if any(character in variable for character in refused):
            raise ConfigError(
                f"{where}: the value of ${{{name}}} holds one of {' '.join(refused)}, which would split the URL it "
                "stands in; percent-encode it there (%3F, %26), or give it as an option in STORAGE_CONFIG"
            )
        return variable

    return re.sub(_VARIABLE, value, text)
