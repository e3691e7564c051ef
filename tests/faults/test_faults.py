"""The campaign of faults finds no defect: a short one always, a long one where it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.samples import PATIENCE, REPOSITORY


def campaign(*arguments, cwd):
    """What a campaign printed; it forks, so it runs in a process without other threads."""
    command = [sys.executable, "-m", "tests.faults", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=40 * PATIENCE
    )
    if "unshare" in ended.stderr and ended.returncode:
        pytest.skip(f"no file system of its own can be mounted here: {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-4000:]
    return ended.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mount namespaces")
def test_a_short_campaign_on_cached_pixels_finds_no_defect(tmp_path):
    printed = campaign("--short", "--damage", 3, "--kills", 0, "--others", 0, cwd=tmp_path)
    assert "; 0 defects" in printed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mount namespaces")
def test_a_long_campaign_on_the_whole_chain_finds_no_defect(tmp_path):
    printed = campaign("--damage", 200, "--kills", 20, "--others", 10, cwd=tmp_path)
    assert "; 0 defects" in printed
