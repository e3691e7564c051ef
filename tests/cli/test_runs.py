"""hubretrain runs and doctor, completion, and commands that are pasted."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from hubretrain.cli import main
from hubretrain.cli.command import next_command
from hubretrain.cli.upkeep.doctor import EXTRAS
from hubretrain.evaluation import LABEL_METRICS, METRICS
from tests.runs.test_listing import write_run
from tests.samples import REPOSITORY, write_digits


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments, code=0, **options):
    ran = CliRunner().invoke(main, [str(a) for a in arguments], **options)
    assert ran.exit_code == code, ran.output
    return ran


def test_runs_lists_name_data_modules_best_date_and_size(place):
    assert "runs/ holds no run. Next: hubretrain fit" in invoke("runs").stdout
    write_run(place / "runs" / "one")
    titles, row = (line.split("\t") for line in invoke("runs").stdout.splitlines())
    assert titles == ["run", "data set", "modules", "best", "date", "size"]
    assert row[:4] == ["one", "digits", "small", "small: accuracy 90.0 (80.0-95.0)"]
    (listed,) = json.loads(invoke("runs", "--json").stdout)
    assert listed["estimate"] == [0.9, 0.8, 0.95]


def test_removal_asks_first(place):
    run = write_run(place / "runs" / "one")
    invoke("runs", "remove", "one", input="n\n", code=1)
    assert run.is_fitted
    assert "runs/one/ is removed." in invoke("runs", "remove", "one", input="y\n").stdout
    assert not run.folder.exists()
    (place / "runs" / "photos").mkdir()
    told = invoke("runs", "remove", "photos", "--yes", code=1).stderr
    assert told == "hubretrain: runs/photos is no run: it holds no run.json; nothing is removed.\n"


def test_doctor_has_a_line_for_each_extra_and_touches_no_network(place, monkeypatch):
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    assert set(EXTRAS) == set(setup["options.extras_require"]) - {"dev", "fuzz"}

    def refuse(*_: object) -> None:
        raise AssertionError("no network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HUBRETRAIN_STORE", str(place / "store"))
    found = json.loads(invoke("doctor", "--json").stdout)
    assert found["versions"].keys() >= {"hubretrain", "python", "tensorflow", "numpy"}
    assert found["hardware"].keys() == {"CPU", "cores", "instructions", "GPU", "memory"}
    assert f"{place / 'store'} (" in found["folders"]["module store"]
    assert found["extras"].keys() == EXTRAS.keys()
    assert not (place / "store").exists()
    shown = invoke("doctor").stdout
    assert "hubretrain[ray]" in shown or "installed: caching in several processes" in shown


def test_doctor_says_what_it_reaches_through_a_proxy_that_does_not_answer(place, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    lines = json.loads(invoke("doctor", "--network", "--json").stdout)["network"]
    assert set(lines.values()) == {"not reached (the proxy 127.0.0.1): Connection refused"}
    monkeypatch.setenv("HUBRETRAIN_OFFLINE", "1")
    assert list(json.loads(invoke("doctor", "--network", "--json").stdout)["network"]) == [
        "offline"
    ]


def completed(words, **env):
    """What bash is offered for the last of some words."""
    variables = {"_HUBRETRAIN_COMPLETE": "bash_complete", "COMP_WORDS": shlex.join(words)}
    variables |= {"COMP_CWORD": str(len(words) - 1), **env}
    ran = CliRunner().invoke(
        main, prog_name="hubretrain", env=variables, complete_var="_HUBRETRAIN_COMPLETE"
    )
    return [line.partition(",")[2] for line in ran.stdout.splitlines()]


def test_a_shell_completes_runs_modules_metrics_and_classes(place):
    write_run(place / "runs" / "one")
    write_digits(place / "data" / "digits", 30)
    for command in ("report", "finetune", "export", "predict", "serve", "explain", "evaluate"):
        assert completed(["hubretrain", command, "on"]) == ["one"], command
    assert completed(["hubretrain", "runs", "remove", ""]) == ["one"]
    assert completed(["hubretrain", "fit", "--metric", "balanced"]) == ["balanced_accuracy"]
    every_metric = list(dict.fromkeys([*METRICS, *LABEL_METRICS]))
    assert completed(["hubretrain", "fit", "--metric", ""]) == every_metric
    assert "mobilenet_v2_100" in completed(["hubretrain", "cache", "--module", "mobilenet_v2"])
    assert completed(["hubretrain", "fit", "--exclude-class", ""]) == ["0", "1", "2"]
    assert completed(["hubretrain", "explain", "--class", ""]) == ["0", "1", "2"]


def test_a_next_command_is_pasted_with_blanks_and_quotes(place):
    folder = place / "my 'runs' $HOME"
    words = next_command("finetune", folder)
    script = f"import sys; print(sys.argv[2:] == {[str(folder)]!r})"
    pasted = words.replace("hubretrain", f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}")
    ran = subprocess.run(pasted, shell=True, capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n"


def test_python_m_hubretrain_is_the_command(place):
    ran = subprocess.run(
        [sys.executable, "-m", "hubretrain", "runs"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert "runs/ holds no run" in ran.stdout
