"""Complete namespaces and keys: in bash, zsh and fish, and in `hutch shell`.

A completion says nothing on an error and creates nothing. It reads keys, never values.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, add_completion_class

from .. import Store
from ..handlers import raised_by_handler
from .app import Call

# The first keys and the last one: the common prefix of these is the common prefix of all.
_SHOWN = 200
_TIME_LIMIT_S = 2.0
# What bash treats as the end of a word to complete, outside quotes.
_BREAKS = ":=@"
_SPECIAL = re.compile(r"([^\w@%+=:,./\-])")


@dataclass(frozen=True)
class Line:
    """A line up to the cursor: its complete words, and the word to complete."""

    words: list[str]
    #: The value of the word so far.
    incomplete: str
    #: The word as it was typed, with quotes and backslashes.
    typed: str
    #: The quote that is open at the cursor, or nothing.
    quote: str

    def finished(self, value: str) -> str:
        """Return the typed word, completed to `value`; an open quote stays open."""
        rest = value[len(self.incomplete) :]
        if self.quote == "'":
            return self.typed + rest.replace("'", "'\\''")
        if self.quote:
            return self.typed + re.sub(r'([\\"$`])', r"\\\1", rest)
        return self.typed + _SPECIAL.sub(r"\\\1", rest)


def parse_line(text: str) -> Line:
    """Split `text` as a POSIX shell does; the last word is the word to complete."""
    words: list[str] = []
    value, quote, begin, escaped = "", "", 0, False
    for index, char in enumerate(text):
        if escaped:
            value, escaped = value + char, False
        elif char == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote, value = ("", value) if char == quote else (quote, value + char)
        elif char in "'\"":
            quote = char
        elif char in " \t\n":
            if begin < index:
                words.append(value)
            value, begin = "", index + 1
        else:
            value += char
    return Line(words, value, text[begin:], quote)


def complete_namespace(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the namespaces that start with `incomplete`."""
    return _items(context, lambda store: (name for name in store.namespaces() if name.startswith(incomplete)))


def complete_key(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the keys of the namespace on the line that start with `incomplete`: the first ones, and the last."""

    def keys(store: Store) -> Iterator[str]:
        namespace = context.params.get("namespace")
        if not isinstance(namespace, str) or namespace not in store.namespaces():
            return
        with store.open(namespace) as handle:
            keys = list(itertools.islice(handle.scan_keys(incomplete), _SHOWN))
            if len(keys) == _SHOWN:
                keys += itertools.islice(handle.scan_keys(incomplete, reverse=True), 1)
            yield from dict.fromkeys(keys)

    return _items(context, keys)


def _items(context: click.Context, names: Callable[[Store], Iterable[str]]) -> list[CompletionItem]:
    call = context.find_object(Call)
    if call is None:
        return []
    try:
        with call.connect_reading() as store:
            names_ = list(names(store))
    except Exception as error:  # a completion has no place for an error
        if raised_by_handler(error):
            raise
        return []
    # Other names cannot be typed, and could control the terminal.
    return [CompletionItem(name) for name in names_ if name.isprintable()]


def complete_word(group: click.Group, arguments: list[str], call: Call) -> None:
    """Print the completions that the user's shell asks for, and exit. A store that takes too long gives none."""
    if os.environ["_HUTCH_COMPLETE"].endswith("_complete"):
        # A call of a driver cannot be interrupted, and a reader may end at any time.
        limit = threading.Timer(_TIME_LIMIT_S, os._exit, (0,))
        limit.daemon = True
        limit.start()
    group.main(arguments, prog_name="hutch", obj=call)


def complete_line(group: click.Group, call: Call, line: Line) -> list[str]:
    """Return the last word of `line` completed in every possible way, for a shell that knows `group`."""
    items = ShellComplete(group, {"obj": call}, "", "").get_completions(line.words, line.incomplete)
    return [line.finished(item.value) for item in items if item.type == "plain"]


@add_completion_class
class _Bash(BashComplete):
    """Completion in bash of words that hold colons, spaces and quotes, which click's own does not complete."""

    source_template = r"""
%(complete_func)s() {
    local response type value
    COMPREPLY=()
    response=$(env COMP_LINE="${COMP_LINE:0:$COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done <<< "$response"
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        self._line = parse_line(os.environ["COMP_LINE"])
        return self._line.words[1:], self._line.incomplete

    def format_completion(self, item: CompletionItem) -> str:
        if item.type != "plain":
            return f"{item.type},"
        whole, typed = self._line.finished(item.value), self._line.typed
        if self._line.quote:
            # bash replaces what follows the open quote.
            return f"plain,{whole[typed.rindex(self._line.quote) + 1 :]}"
        breaks = [char for char in _BREAKS if char in os.environ.get("COMP_WORDBREAKS", ":=")]
        return f"plain,{whole[max((typed.rfind(char) + 1 for char in breaks), default=0) :]}"


@add_completion_class
class _Fish(FishComplete):
    """Completion in fish of words that hold commas, which click's own cuts off."""

    source_template = FishComplete.source_template.replace('string split "," ', 'string split -m 1 "," ')
