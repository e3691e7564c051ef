from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hubretrain.runs import LEADERBOARD, Run
from tests.samples import REPOSITORY, write_digits, write_pooled

STAGES = ["data check", "screen", "cache", "fit", "finetune", "report"]


def auto(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"}
    command = [sys.executable, "-m", "hubretrain", "auto", "data/digits", *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process):
    out, _ = process.communicate(timeout=900)
    return out, process.returncode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto")
    write_digits(folder / "data" / "digits", 90)
    write_pooled(folder / "good", size=16, seed=5)
    return folder


def diary(folder):
    return json.loads((folder / "runs" / "digits" / "auto.json").read_text())["commands"]


def test_a_dry_run_prints_the_plan_and_does_nothing(folder):
    out, code = output_of(auto(folder, "--dry-run", "--hours", "2"))
    assert code == 0, out
    assert "Plan for 120:00 (minutes:seconds) with 90 images" in out
    assert all(f"hubretrain {stage}: about" in out for stage in STAGES)
    assert out.splitlines()[-1].startswith("Next: hubretrain auto ")
    assert out.endswith(" --hours 2\n")
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_stages_follow_one_another_resume_where_they_stopped_and_end_in_a_report(folder):
    words = ("-m", "good", "--hours", "0.1")
    process = auto(folder, *words)
    until = time.monotonic() + 600
    record = folder / "runs" / "digits" / "auto.json"
    while not (record.exists() and any(c["stage"] == "cache" for c in diary(folder))):
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stopped = diary(folder)
    out, code = output_of(auto(folder, *words))
    assert code == 0, out
    commands = diary(folder)
    assert [c["stage"] for c in commands if c["is_finished"]] == STAGES
    assert [c["words"] for c in commands][: len(stopped)] == [c["words"] for c in stopped]
    assert "$ hubretrain data check" not in out  # it was finished
    run = Run(folder / "runs" / "digits")
    assert LEADERBOARD.read(run.folder)["module"].iloc[0] == "good"
    assert (run.folder / "report.html").exists()
    assert (run.export_folder / "export.json").exists()
    assert "Next: hubretrain predict runs/digits IMAGE" in out
    again, code = output_of(auto(folder, *words))
    assert code == 0, again
    assert "$ hubretrain" not in again


def test_a_stage_that_fails_ends_with_its_sentence(folder, tmp_path):
    write_digits(tmp_path / "data" / "digits", 30)
    (tmp_path / "nothing").mkdir()
    out, code = output_of(auto(tmp_path, "-m", "nothing", "--hours", "0.05"))
    assert code == 1
    assert "none of the modules can be used: nothing: nothing holds no" in out, out
    assert "Traceback" not in out


def test_a_time_that_no_data_set_keeps_is_said_before_it_begins(folder):
    out, code = output_of(auto(folder, "--dry-run", "--hours", "0.01"))
    assert code == 0, out
    assert "less than starting the commands takes" in out
