from __future__ import annotations

import subprocess
import sys

from tests.samples import REPOSITORY


def test_loading_tensorflow_and_its_hub_writes_nothing():
    command = [sys.executable, "-c", "import hubretrain; hubretrain.Backbone"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
