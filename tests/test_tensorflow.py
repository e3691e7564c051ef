from __future__ import annotations

import shutil
import subprocess
import sys

from tests.samples import REPOSITORY


def test_loading_tensorflow_and_its_hub_writes_nothing():
    command = [sys.executable, "-c", "import hubretrain; hubretrain.Backbone"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_a_damaged_fingerprint_which_nothing_reads_is_passed_over_without_a_word(
    small_module, tmp_path, caplog, capfd
):
    from hubretrain.tensorflow import tf

    folder = shutil.copytree(small_module, tmp_path / "small")
    fingerprint = folder / "fingerprint.pb"
    fingerprint.write_bytes(bytes(fingerprint.stat().st_size))
    assert tf.saved_model.load(str(folder)) is not None
    assert caplog.text == ""
    assert "Fingerprint" not in "".join(capfd.readouterr())
