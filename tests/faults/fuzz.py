"""Readers under atheris, whose mutations go where they reach new code.

    python -m tests.faults.fuzz --runs 1000000 run.json

runs one reader, or all one after another if none is named; atheris is in the extra `fuzz`. Any
exception but the sentence of a foreseen error ends it, and the input is kept as `crash-...`.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import click

_LABELS = ("labels.csv", "labels.jsonl", "labels.tsv")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--runs", default=10_000, help="Executions of each reader.")
@click.option("--seed", default=1, help="Seed of the mutations.")
def main(names: tuple[str, ...], runs: int, seed: int) -> None:
    """Fuzz the readers of files that are called NAMES, by default all."""
    if len(names) == 1:
        _fuzz(names[0], runs, seed)
    failed = []
    for name in names or tuple(_readers()):
        command = [sys.executable, "-m", "tests.faults.fuzz", name, f"--runs={runs}"]
        ended = subprocess.run([*command, f"--seed={seed}"], stderr=subprocess.PIPE, text=True)
        lines = ended.stderr.strip().splitlines()
        print(f"{name}: {lines[-1] if lines else ''}", flush=True)
        if ended.returncode:
            failed.append(name)
            print("\n".join(lines[-40:]))
    sys.exit(bool(failed))


def _readers() -> dict[str, bytes]:
    """Return an undamaged file of each kind, by its name."""
    from tests.test_damaged_files import SAMPLES

    table = b"file_name,label,patient_id\na/1.jpg,a,x\nb/2.jpg,b,y\n"
    lines = b'{"file_name": "a/1.jpg", "label": "a"}\n{"file_name": "b/2.jpg", "label": "b"}\n'
    labels = dict(zip(_LABELS, (table, lines, table.replace(b",", b"\t")), strict=True))
    return {name: content for name, (content, _) in SAMPLES.items()} | labels


def _fuzz(name: str, runs: int, seed: int) -> None:
    """Fuzz one reader; the process ends with it."""
    import atheris

    with atheris.instrument_imports(include=["hubretrain"]):
        from hubretrain.data.tables.reading import read_table
        from hubretrain.errors import DataError
        from tests.test_damaged_files import check, resigned

    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))

    def read(data: bytes) -> None:
        if name not in _LABELS:
            with contextlib.suppress(ValueError, RecursionError):  # else its damage is checked
                data = resigned(name, data)
            check(name, data, folder)
            return
        path = folder / name
        path.write_bytes(data)
        with contextlib.suppress(DataError):
            read_table(path)

    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "undamaged").write_bytes(_readers()[name])
    atheris.Setup(
        [sys.argv[0], str(corpus), f"-runs={runs}", f"-seed={seed}", "-max_len=16384"], read
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
