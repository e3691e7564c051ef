"""Names of strangers in the terminal: nothing that it obeys."""

from __future__ import annotations

import io
import json
import re

import pytest
from click.testing import CliRunner
from rich.table import Table

from hubretrain.cli import main
from hubretrain.cli.command import echo, printable, terminal
from hubretrain.data.dataset import open_dataset
from tests.samples import write_digits

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
STRANGE = ("\x1b]0;owned\x07", "a\x1b[2Jb", "\u202egpj", "x\u2028y", "\x9b31m", "b\x08c", "\u2066z")


def test_all_that_a_terminal_obeys_is_written_as_a_code_which_json_reads_back():
    everything = "".join(map(chr, range(0x3000)))
    assert set(OBEYED.findall(printable(everything))) == set()
    assert [c for c in everything if printable(c) == c and OBEYED.match(c)] == []
    for text in ("äöü\n\t", "\u0645\u0631\u062d\u0628\u0627", "日本"):
        assert printable(text) == text
    for name in STRANGE:
        text = json.dumps({"path": name}, ensure_ascii=False)
        assert json.loads(printable(text)) == {"path": name}


def test_tables_and_messages_are_printable(capsys):
    out = io.StringIO()
    table = Table()
    for name in STRANGE:
        table.add_row(name)
        echo(name)
    terminal(file=out).print(table, *STRANGE)
    assert OBEYED.findall(out.getvalue() + capsys.readouterr().out) == []


@pytest.mark.parametrize("name", STRANGE)
def test_a_data_set_with_such_names_is_checked_and_split_without_obeying_them(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    data = write_digits(tmp_path / "data", 24)
    (data / "2").rename(data / name)
    (data / name / f"{name}.png").write_bytes(b"broken")
    for command in (["data", "check", str(data)], ["data", "split", str(data), "--folds", "2"]):
        ran = CliRunner().invoke(main, command)
        assert ran.exit_code in (0, 1)
        assert ran.exception is None or isinstance(ran.exception, SystemExit)
        assert OBEYED.findall(ran.output) == []


def test_a_line_of_json_holds_any_character(tmp_path):
    names = ["a\u2028b", "c\u2029d", "e\x85f", "g\x1ch"]
    data = write_digits(tmp_path / "data", 6)
    paths = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    lines = [
        json.dumps({"file_name": path, "label": names[i % 2]}, ensure_ascii=False)
        for i, path in enumerate(paths)
    ]
    (data / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert open_dataset(data).class_names == tuple(names[:2])
