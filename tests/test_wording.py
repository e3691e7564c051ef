"""What a person reads is plain English in the field's terms: one word per thing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.samples import REPOSITORY

UNIT = (
    "row|column|line|batch|image|photograph|ms|millisecond|second|s|MB|kB|byte|file|folder|entry|view"
    "|epoch|step|feature|worker|pass|pixel|head|score|weight|value|draw|cost|digest|group|thread"
)
OF_EACH = (
    "module|image|class|epoch|batch|view|forward|pass|run|fold|file|second|candidate|row|step|request"
    "|effect|question|question|member|part|content|layer|label|minute|device|replica"
)
ODD = {  # pattern: what to write instead
    rf"\b({UNIT})(e?s)? an? ({OF_EACH})\b": "per: one row per module, ms per image",
    r"\bprocessors?\b": "CPU",
    r"\blikeliest\b": "top-1, most probable",
    r"\btelephones?\b": "mobile devices",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(its|their|the) rights\b": "permissions",
    r"\bmake room\b|\bgives? back the room\b": "free disk space",
    r"\b(be|is|are) had\b|\bto be had\b": "available, installed, downloaded",
    r"\bluck\b|\blucky\b": "selection bias, optimism",
    r"\brosy\b|\bhumbler?\b": "optimistic, softer",
    r"\bjudg(e|es|ed|ing)\b": "evaluate",
    r"\bgo(es)? on (from|where|with|after)\b": "resume, continue",
    r"\brandom twins?\b|\btwins?\b": "randomly initialised control",
    r"\bmust be beaten\b": "baseline",
    r"\bthat (it|they|heads?|modules?|models?) (said|says?) of\b|\bwhat .{0,20} said of\b": (
        "probabilities, predictions"
    ),
    r"\bgreet(s|ings?)?\b": "start-up log",
    r"\bcome to\b|\bcame to\b": "result",
    r"\bbr(ing|ings|inging|ought) .{0,30}\bhere\b": "download",
    r"\bkept quiet\b|\bunheard\b": "suppressed",
    r"\b(is|are) asked for\b": "requested",
    r"\bas (it|they) (was|were) before\b": "unchanged",
}


def documents() -> list[Path]:
    """Every Markdown file and template of the repository."""
    markdown = list(REPOSITORY.glob("*.md"))
    for folder in ("docs", "cache", "data", "benchmarks", "hubretrain"):
        markdown += (REPOSITORY / folder).rglob("*.md")
    return [*markdown, *(REPOSITORY / "hubretrain").rglob("templates/*")]


def texts(path: Path) -> list[tuple[int, str]]:
    """(line, text) of what a person reads in a file: all of a document, the strings of code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return list(enumerate(text.splitlines(), 1))
    tree = ast.parse(text)
    strings = [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    ]
    comments = [
        (number, line[line.index("# ") :])
        for number, line in enumerate(text.splitlines(), 1)
        if "# " in line
    ]
    return strings + comments


def odd_words(path: Path) -> list[str]:
    name = path.relative_to(REPOSITORY).as_posix()
    return [
        f"{name}:{line}: {match[0]!r}; write: {better}"
        for line, text in texts(path)
        for pattern, better in ODD.items()
        for match in re.finditer(pattern, " ".join(text.split()), flags=re.IGNORECASE)
    ]


def test_documents_and_templates_are_plain_english():
    wrong = [sentence for path in documents() for sentence in odd_words(path)]
    assert not wrong, "\n".join(wrong)


def test_messages_help_and_docstrings_are_plain_english():
    paths = sorted((REPOSITORY / "hubretrain").rglob("*.py"))
    wrong = [sentence for path in paths for sentence in odd_words(path)]
    assert not wrong, "\n".join(wrong)


def test_the_patterns_find_what_they_are_for():
    examples = ("one row a module", "2 processors", "mend its rights", "the likeliest class")
    for example in examples:
        assert any(re.search(p, example, flags=re.IGNORECASE) for p in ODD), example
