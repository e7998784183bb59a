"""The result of a search for plugins, and the choice of one by its name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..errors import PluginConflictError, PluginLoadError, PluginNotFoundError, nearest
from .descriptor import BrokenPlugin, PluginInfo, shown

# Most names listed in an error message.
_MAX_LISTED = 40


class Discovery(NamedTuple):
    """The result of a search for plugins."""

    #: The engines.
    plugins: tuple[PluginInfo, ...]
    #: The descriptors, folders and entry points that cannot be used.
    broken: tuple[BrokenPlugin, ...]
    #: Every place searched, in order, as text for people.
    places: tuple[str, ...]
    #: The codecs that are not built in.
    codecs: tuple[PluginInfo, ...] = ()

    def find(self, name: str) -> PluginInfo:
        """Return the plugin called `name`, or else the plugin with that URL scheme; case does not matter.

        Raises PluginNotFoundError if none matches, PluginConflictError if several match, PluginLoadError if the only
        match is broken.
        """
        wanted = name.casefold()
        for kind, matching in (
            ("are named", [plugin for plugin in self.plugins if plugin.name.casefold() == wanted]),
            ("have the URL scheme", [p for p in self.plugins if wanted in (s.casefold() for s in p.schemes)]),
        ):
            if len(matching) == 1:
                return matching[0]
            if matching:
                raise PluginConflictError(
                    f"{len(matching)} plugins {kind} {name!r}: {_listed(shown(plugin.path) for plugin in matching)}. "
                    "Remove or rename all but one"
                )
        self._raise_if_broken(name)
        names = sorted({plugin.name for plugin in self.plugins}, key=str.casefold)
        known = [*(scheme for plugin in self.plugins for scheme in plugin.schemes), *names]
        raise PluginNotFoundError(
            f"there is no storage plugin {name!r}.{nearest(name, known)} Plugins found: {_listed(names)}"
            f"{f' ({len(self.broken):,} more cannot be used)' if self.broken else ''}. "
            f"Places searched: {_listed(self.places)}{self._not_searched()}"
        )

    def find_codec(self, name: str) -> PluginInfo:
        """Return the codec called `name`, which is not built in; case does not matter.

        Raises ConfigError if none matches, PluginConflictError if several match, PluginLoadError if the only match
        is broken.
        """
        matching = [codec for codec in self.codecs if codec.name.casefold() == name.casefold()]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise PluginConflictError(
                f"{len(matching)} codecs are named {name!r}: {_listed(shown(codec.path) for codec in matching)}. "
                "Remove or rename all but one"
            )
        self._raise_if_broken(name)
        # Imported here because most searches are for engines, and this imports ormsgpack.
        from ..codec.select import unknown_codec

        raise unknown_codec(name, [codec.name for codec in self.codecs])

    def refuse_clash(self, info: PluginInfo, headers: bytes) -> None:
        """Raise PluginConflictError if another codec than `info` has one of `headers`."""
        for other in self.codecs:
            if other is not info and (common := set(other.headers) & set(headers)):
                raise PluginConflictError(
                    f"the codecs {info.name!r} ({shown(info.path)}) and {other.name!r} ({shown(other.path)}) both "
                    f"write header byte 0x{min(common):02x}. Remove one of them, or change the Headers of one that has "
                    "written nothing yet"
                )

    def _raise_if_broken(self, name: str) -> None:
        # Called last, so that a broken plugin never hides a working one.
        for broken in self.broken:
            if broken.name is not None and broken.name.casefold() == name.casefold():
                raise PluginLoadError(
                    f"plugin {name!r} cannot be used: {shown(broken.path)}: {broken.reason}",
                    name=broken.name,
                    path=str(broken.path),
                )

    def _not_searched(self) -> str:
        """Return the reasons why places could not be searched, such as too many open files: the plugin may be there."""
        reasons = [f"{shown(broken.path)} {broken.reason}" for broken in self.broken if broken.name is None]
        skipped = [reason for reason in reasons if "cannot be searched" in reason]
        return f". But {_listed(skipped)}" if skipped else ""


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    more = f", and {len(items) - _MAX_LISTED:,} more" if len(items) > _MAX_LISTED else ""
    return (", ".join(items[:_MAX_LISTED]) or "none") + more
