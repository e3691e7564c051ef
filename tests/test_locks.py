from __future__ import annotations

import subprocess
import sys

import pytest

from hubretrain.errors import LockedError
from hubretrain.locks import is_locked, only_writer


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    path = tmp_path / "new" / "module.h5"
    with only_writer(path):
        assert is_locked(path)
        with pytest.raises(LockedError, match=r"module.h5 is being written by process \d+ on "):
            only_writer(path).__enter__()
    assert not is_locked(path)
    assert not list(path.parent.iterdir())


def test_a_disk_without_room_for_the_name_of_the_writer_does_not_stop_it(tmp_path):
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from hubretrain.locks import is_locked, only_writer\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "path = Path(sys.argv[1])\n"
        "with only_writer(path):\n"
        "    size = path.with_name('.module.h5.lock').stat().st_size\n"
        "    sys.stdout.write(f'{is_locked(path)} {size}')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "module.h5"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert ran.stdout == "True 0"
