"""Test the words of src, plugins, examples and pages: one word for one thing, and no word that must be read twice."""

from __future__ import annotations

import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Pattern -> what to write instead. A pattern is searched in each line, in either case, unless it contains capitals;
# an underscore ends a word, so that names are read too.
PHRASES = {
    "told|tells? of": "say, report; the text of a Finding is its message",
    "whoever|(?:for|by|to|of) who|who wants": "a caller that ..., a program that ...",
    "nobody can be asked|by nobody|nobody is told|nobody's": "name the thread, process or caller, in the active voice",
    "mend(?:s|ed|ing)?": "repair",
    "in vain": "without effect; a miss",
    "(?:holds|hold) (?:itself|themselves)": "refers to itself, is self-referential",
    "let loose|lets? go of it all": "release, start",
    "(?:is|are|as|was) none of": "is not one of; is out of range",
    "(?:if|where|when) there (?:is|are) none": "say what is missing",
    "(?:answer|value|text|key|file|name) that is none|is none that": "is not a ..., is invalid",
    r"(?:a|an|one) (?!has|is|to|in|as|or|of|with)\w+ an? (?:key|value|item|file|line|call)": "per",
    r"(?:a|an|one) (?!has|is|to|in|as|or|of|with)\w+ an? (?:thread|process|namespace|promise|test|round)": "per",
    "(?:that|those) of (?:it|them|which|whose|each|every)": "repeat the noun",
    "(?:is|are) foreign|foreign one": "was not written by hutch",
    "(?:was|is|were|been|be) cut off|cut off in": "truncated",
    "but (?:for )?(?:a missing|those|that of)": "except",
    "(?<!wait )(?<!waiting )for (?:it|they|he|each) (?:would|is|are|has|have|will|can)": "because",
    "that start so|which start so": "that start with ...",
    "is a? ?no (?:text|int|str|bytes|list|dict)": "is an int, not text",
    "(?<!return )an (?:str|dict|list|tuple|set|bool|bytes)": "a str",
    "(?<![`.])a (?:int|item|engine|index|error|object|option|int|hour|entry|opened|async|asyncio|empty|atomic)": "an",
    "carry codec|codec carry|carry: (?:true|false)": "the codec is called passthrough",
    "check_data|check_files": "verify, verify_files",
    "set_if_unchanged": "compare_and_set by value, compare_and_swap by token",
    "binds_keys": "checksum_covers_key",
    "check (?:the )?conformance": "test conformance",
    "the moment that|at the same moment as": "when, concurrently",
}
VERBATIM = {
    "--fix\\b": "--repair",
    "\\b(?:Keeper|Kept\\b(?! ))": "ReadCache",
    "\\b(?:Lane|Lanes|Hands|Turns|Crowd)\\b": "Workload, StoreConnection, CommitQueue",
}
# Parts of identifiers, as in `_told` or `kept_values`.
PARTS = {
    "told": "message",
    "turns": "commit_queue; a name for what is counted",
    "crowd": "queue_length, waiting",
    "lead": "commit_group",
    "lane": "workload",
    "lanes": "workload",
    "hands": "connection",
    "pots": "balances",
    "dice": "rng",
    "ear": "reader",
    "kept": "cached, retained, stored: say where",
    "mend": "repair",
    "mended": "repaired",
    "keeper": "read_cache",
    "carry": "passthrough",
    "somebody": "say who",
    "nobody": "say who",
    "vain": "misses",
}
# Names that do not say what they hold.
RIDDLES = {
    r"\w*_found|found(?:_\w+)?": "name what was found, or the verb: find_place",
    r"(?:\w+_)?seed(?:_of_key)?": "key_crc for a frame's; rng for a random generator",
}
# (file, text of the line or name, why it stays).
EXCEPTIONS = [
    ("src/hutch/testing/", "seed", "the seed of a random generator, as in the module random"),
    ("src/hutch/bridges/errbot/plain_pickle.py", "carry_out", "executes the opcodes of a pickle"),
    ("CHANGELOG.md", "| `", "the table of renames: old name, new name"),
    ("docs/tutorial.md", "nobody", "the name of a user"),
]

FILES = sorted(
    file
    for folder in ("src", "plugins", "examples", "docs")
    for file in (ROOT / folder).rglob("*")
    if file.suffix in {".py", ".md", ".plug", ".toml", ".yml"} and ".venv" not in file.parts
) + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml", "pyproject.toml")]


def is_excepted(name: str, text: str) -> bool:
    return any(name.startswith(file) and part in text for file, part, _ in EXCEPTIONS)


def findings_of_text(name: str, text: str) -> list[str]:
    """Return one line per phrase of the list: where it is, and what to write instead."""
    patterns = [(re.compile(rf"(?<![^\W_])(?:{p})(?![^\W_])", re.I), better) for p, better in PHRASES.items()]
    patterns += [(re.compile(p), better) for p, better in VERBATIM.items()]
    return [
        f"{name}:{number}: {match[0]!r} -> {better}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, better in patterns
        if (match := pattern.search(line)) and not is_excepted(name, line)
    ]


def findings_of_names(name: str, text: str) -> list[str]:
    """Return one line per identifier that has a word of the list in it, as `_told` or `LaneOfWriters` would."""
    found = {}
    for token in tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__):
        if token.type == tokenize.NAME and not is_excepted(name, token.string):
            parts = {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", token.string)}
            better = [PARTS[part] for part in parts & PARTS.keys()]
            better += [better for pattern, better in RIDDLES.items() if re.fullmatch(pattern, token.string)]
            if better:
                found[token.string] = f"{name}:{token.start[0]}: the name {token.string} -> {better[0]}"
    return list(found.values())


def findings(name: str, text: str) -> list[str]:
    return findings_of_text(name, text) + (findings_of_names(name, text) if name.endswith(".py") else [])


def test_no_word_of_the_list_has_come_back() -> None:
    assert len(FILES) > 200
    wrong = [
        finding
        for file in FILES
        for finding in findings(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(["words that CONTRIBUTING.md rules out:", *wrong])


def test_the_list_is_read_in_texts_and_in_names() -> None:
    refused = [
        '"""One module a promise."""',
        "# whoever opens it is told",
        'raise TypeError("page 7 is none of this file")',
        "the_message = finding_told",
        "self._kept = {}",
        "class TurnsOfThreads: ...",
        "found = 1",
        "seed = crc32(key)",
        'say("hutch check --fix")',
        "# the value is a int",
    ]
    for line in refused:
        assert findings("module.py", line + "\n"), line
    for line in (
        '"""One module per promise."""',
        "# the file is truncated",
        "returns = founder = 1",
        "clear = early = 1",
    ):
        assert not findings("module.py", line + "\n"), line


def test_each_exception_is_used_and_they_are_few() -> None:
    assert len(EXCEPTIONS) <= 15
    texts = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in FILES}
    for file, part, _ in EXCEPTIONS:
        assert any(name.startswith(file) and part in text for name, text in texts.items()), (file, part)
