"""How the server starts and stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from hubretrain.cli import main
from hubretrain.data.images.reading import MOST_PIXELS
from tests.samples import PATIENCE, REPOSITORY
from tests.serving.samples import picture, serving

pytest.importorskip("fastapi")


@pytest.mark.parametrize(
    ("option", "value", "code", "sentence"),
    [
        ("--timeout", "inf", 2, "inf is not in the range 0.1<=x<=3600"),
        ("--timeout", "nan", 1, "--timeout is nan; expected 0.1 to 3600"),
        ("--max-pixels", str(MOST_PIXELS + 1), 2, f"not in the range 1<=x<={MOST_PIXELS}"),
        ("--host", "a..b", 1, "cannot listen on a..b:8501 ("),
    ],
)
def test_an_option_out_of_bounds_is_one_sentence(small_export, option, value, code, sentence):
    ran = CliRunner().invoke(main, ["serve", str(small_export), option, value])
    assert ran.exit_code == code
    assert sentence in ran.stderr
    assert "Traceback" not in ran.output


def test_interrupting_it_is_how_it_ends(small_export):
    with serving(small_export) as running:
        running.ask("GET", "/healthz")  # it listens before it serves
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=PATIENCE) == 0
        assert running.process.stderr.read() == ""


def test_it_stops_when_told_and_a_taken_port_is_one_sentence(small_export):
    with serving(small_export) as running:
        command = [sys.executable, "-m", "hubretrain", "serve", str(small_export)]
        taken = subprocess.run(
            [*command, "--port", str(running.port)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert taken.returncode == 1
        assert taken.stderr == (
            f"hubretrain: cannot listen on 127.0.0.1:{running.port} (Address already in use); "
            "choose another --port or --host.\n"
        )
        assert running.ask("POST", "/predict", picture(0))[0] == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=PATIENCE) in (0, -signal.SIGTERM)
        assert running.process.stderr.read() == ""
