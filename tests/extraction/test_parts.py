from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hubretrain.bottlenecks import Bottlenecks
from tests.samples import REPOSITORY, write_digits, write_module


@pytest.mark.slow
@pytest.mark.parametrize("array", [False, True], ids=["processes", "an array job"])
def test_the_example_of_parts_gives_the_file_of_one_machine(tmp_path, array):
    write_digits(tmp_path / "digits", 60)
    write_module(tmp_path / "small")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": programs}

    def run(*words, **more):
        command = [str(word) for word in words]
        subprocess.run(command, cwd=tmp_path, env={**environment, **more}, check=True)

    script = REPOSITORY / "examples" / "parts.sh"
    words = (script, "digits", "small", 4, "--views", 2, "--engine", "tensorflow")
    if array:
        for i in range(1, 5):
            run(*words, SLURM_ARRAY_TASK_ID=str(i))
    else:
        run(*words)
    parts = sorted((tmp_path / "cache" / "digits" / "parts").glob("*.h5"))
    assert len(parts) == 4
    run("hubretrain", "cache", "merge", *parts)
    whole = ("hubretrain", "cache", "digits", "--module", "small", "--views", 2)
    run(*whole, "--engine", "tensorflow", "--cache", "whole")
    files = [tmp_path / name / "digits" / "small.h5" for name in ("cache", "whole")]
    with Bottlenecks(files[0]) as merged, Bottlenecks(files[1]) as one:
        assert merged.sha256s == one.sha256s
        for view in range(2):
            assert np.array_equal(merged.view(view)[:], one.view(view)[:])
