"""Read YAML as `yaml.safe_load` does, but bounded, refusing duplicate keys, and without quoting the file.

`safe_load` keeps the last of two equal keys, expands aliases until memory is full ("billion laughs"), and quotes the
line in its errors. So the events are counted before anything is built, and this module converts nodes to values,
except scalars, which `SafeLoader` converts.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.reader import ReaderError

from ..errors import ConfigError
from ..handlers import passes_through
from .bounds import MAX_DEPTH, MAX_NODES, unquoted
from .url import shown_name

# The longest text that is read as a number or a date: int() and similar functions take quadratic time.
_LONGEST_PLAIN = 1_000
_TAG = "tag:yaml.org,2002:"
_SCALARS = frozenset(_TAG + kind for kind in ("null", "bool", "int", "float", "str", "timestamp", "binary"))
_KINDS: dict[type[yaml.Node], frozenset[str]] = {
    yaml.ScalarNode: _SCALARS,
    yaml.SequenceNode: frozenset({_TAG + "seq"}),
    yaml.MappingNode: frozenset({_TAG + "map"}),
}


def read_yaml(text: str, shown: str) -> Any:
    """Return the single document in `text`, or None if it is empty. Raises ConfigError that names the line."""
    try:
        _count(text, shown)
        root = yaml.compose(text, yaml.SafeLoader)
    except ConfigError:  # itself a ValueError
        raise
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{shown}, line {line}: not well-formed YAML: a control character") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{shown}, line {mark.line + 1}" if mark else shown
        raise ConfigError(f"{where}: not well-formed YAML: {unquoted(error.problem)}") from None
    except (ValueError, ArithmeticError) as error:  # an escape beyond Unicode, a version of a thousand digits
        if passes_through(error):
            raise
        raise ConfigError(f"{shown}: not well-formed YAML: a number is out of range") from None
    return None if root is None else _Values(shown).value(root)


def _count(text: str, shown: str) -> None:
    # Count before composing, which recurses and keeps every node in memory.
    nodes = depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            depth += isinstance(event, yaml.CollectionStartEvent)
            _check_room(nodes, depth, f"{shown}, line {_line(event)}")


def _check_room(nodes: int, depth: int, where: str) -> None:
    if nodes > MAX_NODES:
        raise ConfigError(f"{where}: more than {MAX_NODES:,} values; it does not look like a config")
    if depth > MAX_DEPTH:
        raise ConfigError(f"{where}: values nest deeper than {MAX_DEPTH}")


def _line(piece: yaml.Event | yaml.Node) -> int:
    return piece.start_mark.line + 1 if piece.start_mark else 1


class _Values:
    """A converter of one document's nodes to values, within the limits; each use of an alias becomes a copy."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._nodes = 0
        self._scalars = yaml.SafeLoader("")

    def value(self, node: yaml.Node, depth: int = 0) -> Any:
        self._nodes += 1
        depth += not isinstance(node, yaml.ScalarNode)
        _check_room(self._nodes, depth, f"{self._shown}, line {_line(node)}")
        if node.tag not in _KINDS[type(node)]:
            raise self._wrong(node, "a tag that no config uses; quote the value if it is meant as text")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        return [self.value(item, depth) for item in node.value]

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[Any, Any]:
        own: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in sources:
                    if not isinstance(source, yaml.MappingNode):
                        raise self._wrong(key_node, "'<<' takes a mapping, or a list of mappings")
                    merged = self.value(source, depth) | merged
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._wrong(key_node, "a key must be text")
            key = self.value(key_node, depth)
            if key in own:
                raise self._wrong(key_node, f"the key {shown_name(key)} comes twice; give it once")
            own[key] = self.value(value_node, depth)
        return merged | own

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag != _TAG + "str" and len(node.value) > _LONGEST_PLAIN:
            raise self._wrong(node, "a number or date of that length; quote it if it is meant as text")
        try:
            return self._scalars.construct_object(node)
        except Exception as error:  # SafeLoader leaks IndexError, KeyError and others, most of which quote the value
            if passes_through(error):
                raise
            kind = node.tag.removeprefix(_TAG)
            raise self._wrong(node, f"not a valid {kind}; quote the value if it is meant as text") from None

    def _wrong(self, node: yaml.Node, problem: str) -> ConfigError:
        return ConfigError(f"{self._shown}, line {_line(node)}: {problem}")
