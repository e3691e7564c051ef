"""Mutation testing: is there a test that fails when the code is wrong?

    python benchmarks/mutants.py                      a random sample, seeded
    python benchmarks/mutants.py --number 60 --only evaluation/metrics
    python benchmarks/mutants.py --by-hand            those of mutants_by_hand.py

A random mutant is the code with one operator, number or condition replaced (by cosmic-ray).
It is killed where a test of its file fails, or its time is up. What survives is printed with its
line; docs/mutation.md has those that nothing can tell from the code. Tests run in a copy of the
project, in processes that have the libraries imported already.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
REPOSITORY = Path(__file__).parents[1]
NEEDED = ("benchmarks", "hubretrain", "tests", "setup.cfg")
IMPORTED = (
    "h5py",
    "hypothesis",
    "msgspec",
    "numpy",
    "pandas",
    "PIL.Image",
    "pytest",
    "rich.console",
)
IMPORTED += ("scipy.optimize", "scipy.sparse", "scipy.stats", "sklearn.linear_model")
IMPORTED += ("sklearn.metrics", "sklearn.pipeline", "threadpoolctl")
TIMEOUT = 900  # seconds; what never ends is killed

# Files whose mutants are drawn, and the tests that are to kill them, the fastest first. The
# simulations of a whole benchmark are left out: they take longer than all others together.
EVALUATION, SCREENING, HEADS = (
    "tests/evaluation/test_",
    "tests/screening/test_",
    "tests/heads/test_",
)
SPLITTING = ("tests/data/splitting",)
OF_HEADS = (f"{HEADS}losses.py", f"{HEADS}objective.py", f"{HEADS}solver.py", f"{HEADS}path.py")
TESTS: dict[str, tuple[str, ...]] = {
    **{f"data/splitting/{name}": SPLITTING for name in ("folds", "leakage", "splits", "stratify")},
    "evaluation/intervals": (f"{EVALUATION}intervals.py", f"{EVALUATION}evaluator.py"),
    "evaluation/logit_adjustment": (f"{EVALUATION}logit_adjustment.py",),
    "evaluation/metrics": (f"{EVALUATION}metrics.py", f"{EVALUATION}ranking_metrics.py"),
    "evaluation/ranking_metrics": (f"{EVALUATION}ranking_metrics.py", f"{EVALUATION}metrics.py"),
    "evaluation/resamples": (f"{EVALUATION}intervals.py",),
    "evaluation/selection": (f"{EVALUATION}selection.py",),
    "evaluation/temperature": (f"{EVALUATION}temperature.py",),
    "heads/losses": OF_HEADS,
    "heads/objective": OF_HEADS,
    "heads/solver": OF_HEADS,
    "screening/comparison": (
        f"{SCREENING}comparison.py",
        f"{SCREENING}null.py",
        f"{SCREENING}fit.py",
    ),
    "screening/selection": (
        *(f"{SCREENING}{name}.py" for name in ("comparison", "merging", "calibration", "null")),
        f"{SCREENING}layers.py",
    ),
}
LEFT_OUT = "not hold_the_truth_of_a_synthetic_model"
OPERATORS = re.compile(
    "core/(AddNot|NumberReplacer|Replace(AndWithOr|OrWithAnd|TrueWithFalse|FalseWithTrue"
    "|BreakWithContinue|ContinueWithBreak|UnaryOperator_Delete_(Not|USub|Invert)"
    "|BinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|Pow_Mul|Mod_Add|FloorDiv_Mul|BitAnd_BitOr"
    "|BitOr_BitAnd)"
    "|ComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|Lt_Gt|LtE_Lt|LtE_Gt|Gt_GtE|Gt_Lt|GtE_Gt|GtE_Lt"
    "|Is_IsNot|IsNot_Is))|ZeroIterationForLoop)"
)


class Mutant(NamedTuple):
    """Code with a fault.

    Attributes:
        name: File, line and what is changed.
        file: File below the repository.
        code: The whole file with the fault.
        tests: Test files, one of which is to fail.
    """

    name: str
    file: str
    code: str
    tests: tuple[str, ...]


def positions_of(module: str) -> list[tuple[str, str, int, int]]:
    """Return every place of a file that can be changed: module, operator, occurrence, line."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast((REPOSITORY / f"hubretrain/{module}.py").read_text())))
    return [
        (module, name, occurrence, line)
        for name in filter(OPERATORS.fullmatch, sorted(operator_names()))
        for occurrence, line in enumerate(
            start[0] for node in nodes for start, _ in get_operator(name)().mutation_positions(node)
        )
    ]


def drawn(modules: Sequence[str], number: int, seed: int) -> Iterator[Mutant]:
    """Yield a random sample of the mutants of some files that change more than annotations."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    every = [position for module in modules for position in positions_of(module)]
    random.Random(seed).shuffle(every)
    n_drawn = 0
    for module, name, occurrence, line in every:
        file = f"hubretrain/{module}.py"
        code = (REPOSITORY / file).read_text()
        mutated = mutate_code(code, get_operator(name)(), occurrence)
        if mutated is None or _computes(mutated) == _computes(code):
            continue
        before, after = (text.splitlines()[line - 1].strip() for text in (code, mutated))
        yield Mutant(f"{file}:{line}: {before}  ->  {after}", file, mutated, TESTS[module])
        n_drawn += 1
        if n_drawn == number:
            return


def _computes(code: str) -> str:
    """Return what of a file is computed: without annotations and the `*` of signatures."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            node.defaults += [value for value in node.kw_defaults if value is not None]
            node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                setattr(node, name, ast.Constant(0))
    return ast.dump(tree)


def by_hand() -> Iterator[Mutant]:
    """Yield the mutants of `mutants_by_hand`."""
    from mutants_by_hand import MUTANTS

    for name, module, before, after, tests in MUTANTS:
        file = f"hubretrain/{module}.py"
        code = (REPOSITORY / file).read_text()
        if code.count(before) != 1:
            sys.exit(f"{name}: {file} holds {before!r} {code.count(before)} times; expected once.")
        yield Mutant(f"{name} ({file})", file, code.replace(before, after), tuple(tests.split()))


def is_killed(mutant: Mutant, copy: Path) -> str:
    """Return which test kills a mutant in a copy of the project; blank where none does."""
    original, log = (copy / mutant.file).read_bytes(), copy / "log.txt"
    (copy / mutant.file).write_text(mutant.code)
    for cached in (copy / mutant.file).parent.glob(f"__pycache__/{Path(mutant.file).stem}.*"):
        cached.unlink()  # its time and size may be those of the mutant
    try:
        if (child := os.fork()) == 0:
            _run_tests(mutant.tests, copy, log)
        code = _waited(child)
    finally:
        (copy / mutant.file).write_bytes(original)
    if code is None:
        return "time is up"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(), re.MULTILINE)
    return "" if code == 0 else failed[1] if failed else f"exit code {code}"


def _run_tests(tests: Sequence[str], copy: Path, log: Path) -> None:
    """Run tests of the copy in this process, and end it."""
    os.setsid()
    sys.dont_write_bytecode = True
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
    os.dup2(1, 2)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    code = 1
    try:
        options = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
            "--tb=no",
            "-k",
            LEFT_OUT,
        ]
        code = int(importlib.import_module("pytest").main([*options, *tests]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def _waited(child: int) -> int | None:
    """Return the exit code of a process; None if its time is up, when it is killed."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main() -> None:
    """Try mutants and print which survive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=200, help="mutants that are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files whose name contains this")
    parser.add_argument(
        "--by-hand", action="store_true", help="those of mutants_by_hand.py instead"
    )
    chosen = parser.parse_args()
    if chosen.by_hand:
        mutants = (mutant for mutant in by_hand() if chosen.only in mutant.name)
    else:
        modules = [module for module in TESTS if chosen.only in module]
        mutants = drawn(modules, chosen.number, chosen.seed)
    for name in IMPORTED:
        importlib.import_module(name)
    n_killed, survivors = 0, []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in NEEDED:
            source = REPOSITORY / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        for mutant in mutants:
            killer = is_killed(mutant, copy)
            print(f"{'killed' if killer else 'SURVIVED'}: {mutant.name}  [{killer}]", flush=True)
            n_killed += bool(killer)
            survivors += [] if killer else [mutant.name]
    print(f"killed {n_killed} of {n_killed + len(survivors)}; survivors:", *survivors, sep="\n")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
