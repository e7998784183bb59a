"""Layer: the base class of all layers. It forwards every verb; a subclass generates some verbs differently."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Hashable
from inspect import Parameter
from typing import Any

from ..contract import StorageBase
from ..verbs import GeneratedStorage, Kind

# How a parameter of each kind is passed on.
_ARGUMENTS = {
    Parameter.POSITIONAL_ONLY: "{0}",
    Parameter.POSITIONAL_OR_KEYWORD: "{0}",
    Parameter.VAR_POSITIONAL: "*{0}",
    Parameter.KEYWORD_ONLY: "{0}={0}",
    Parameter.VAR_KEYWORD: "**{0}",
}


def compile_verb(name: str, verb: Callable[..., Any], body: str, names: dict[str, Any]) -> Callable[..., Any]:
    """Return a method with the parameters and defaults of `verb`, so that a call costs what a handwritten one does.

    `body` is its source, in which {name} and {arguments} are replaced; it may use `names`.
    """
    parameters = parameters_of(verb)
    arguments = ", ".join(_ARGUMENTS[one.kind].format(one.name) for one in parameters)
    bare = [one.replace(default=Parameter.empty, annotation=Parameter.empty) for one in parameters]
    header = inspect.Signature([Parameter("self", Parameter.POSITIONAL_ONLY), *bare])
    source = f"def {name}{header}:\n{textwrap.indent(body.format(name=name, arguments=arguments), '    ')}"
    made: dict[str, Any] = {}
    exec(source, names, made)  # noqa: S102 - of the source of hutch alone, as namedtuple and dataclass do
    method = made[name]
    defaults = [one for one in parameters if one.default is not Parameter.empty]
    method.__defaults__ = tuple(one.default for one in defaults if one.kind is not Parameter.KEYWORD_ONLY)
    method.__kwdefaults__ = {one.name: one.default for one in defaults if one.kind is Parameter.KEYWORD_ONLY}
    method.__doc__ = verb.__doc__
    compiled: Callable[..., Any] = method
    return compiled


def parameters_of(verb: Callable[..., Any]) -> list[Parameter]:
    """Return the parameters of `verb` without `self`."""
    return list(inspect.signature(verb).parameters.values())[1:]


class Layer(GeneratedStorage):
    """A storage around `inner` that forwards every verb, not only the six, so the engine's own overrides are used."""

    #: Whether values pass as they are, so that `copy`, `dump` and transactions may use the bytes below this layer.
    keeps_values = False

    def __init__(self, inner: StorageBase) -> None:
        self._inner = inner
        self.capabilities = inner.capabilities
        self.validates_keys = inner.validates_keys
        self.wait_s = inner.wait_s
        self.default_ttl_s = inner.default_ttl_s

    @property
    def unlayered(self) -> StorageBase:
        return self._inner.unlayered

    @property
    def has_apply(self) -> bool:
        return self.keeps_values and self._inner.has_apply

    @property
    def write_refusal(self) -> Exception | None:
        return self._inner.write_refusal

    def _around(self, leaf: StorageBase) -> StorageBase:
        around = object.__new__(type(self))
        vars(around).update(vars(self), _inner=self._inner._around(leaf))
        return around

    @property
    def lock_scope(self) -> Hashable:
        return self._inner.lock_scope

    @classmethod
    def generate(cls, name: str, verb: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
        return compile_verb(name, verb, "return self._inner.{name}({arguments})", {})
