"""The library speaks of parameters; only the command line spells flags."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.samples import REPOSITORY

PACKAGE = REPOSITORY / "hubretrain"
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Whole commands, other than the one that runs.
FOREIGN = {"ray start --head", "tensorboard --logdir", "hubretrain cache verify --repair"}
WRITE_COMMANDS = {"option_fields.py", "report/provenance.py"}


def flags_in(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for command in FOREIGN:
        texts = [text.replace(command, "") for text in texts]
    return [flag for text in texts for flag in FLAG.findall(text)]


def test_no_string_outside_the_command_line_spells_a_flag() -> None:
    flags = {
        path.relative_to(PACKAGE).as_posix(): flags_in(path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if PACKAGE / "cli" not in path.parents
    }
    spelled = {name: found for name, found in flags.items() if found}
    assert spelled.keys() <= WRITE_COMMANDS, "name the parameter in backticks instead"
