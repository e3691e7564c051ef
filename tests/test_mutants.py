"""The faults that `benchmarks/mutants_by_hand.py` makes are of the code as it is now."""

from __future__ import annotations

import ast

import pytest

from tests.samples import REPOSITORY

FILE = REPOSITORY / "benchmarks" / "mutants_by_hand.py"


def mutants():
    found: dict[str, object] = {}
    exec(compile(FILE.read_text(encoding="utf-8"), FILE, "exec"), found)
    return found["MUTANTS"]


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant[0])
def test_a_mutant_changes_one_place_and_is_python(mutant):
    _, module, before, after, tests = mutant
    code = (REPOSITORY / "hubretrain" / f"{module}.py").read_text(encoding="utf-8")
    assert code.count(before) == 1
    ast.parse(code.replace(before, after))
    assert all((REPOSITORY / name).is_file() for name in tests.split())
