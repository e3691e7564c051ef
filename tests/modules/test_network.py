from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request

import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules import resolve
from hubretrain.modules.network import reason_of


def test_offline_nothing_is_asked_for_and_caches_are_honoured(hub, monkeypatch):
    handle = f"{hub.url}/google/tiny/1"
    monkeypatch.setenv("HUBRETRAIN_OFFLINE", "1")
    with pytest.raises(ModuleError, match=r"the network is not used"):
        resolve(handle)
    assert hub.requests == []
    monkeypatch.setenv("HUBRETRAIN_OFFLINE", "0")
    module = resolve(handle)
    shutil.rmtree(module.folder)
    monkeypatch.setenv("HUBRETRAIN_OFFLINE", "1")
    assert resolve(handle) == module  # from TFHUB_CACHE_DIR
    assert len(hub.requests) == 2


def test_offline_weights_that_are_not_here_are_refused_without_waiting(tmp_path, monkeypatch):
    monkeypatch.setenv("HUBRETRAIN_OFFLINE", "1")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(
        ModuleError, match=r"keras:MobileNet\?alpha=0.25 cannot be built.*network is not"
    ):
        resolve("keras:MobileNet?alpha=0.25")


def test_a_download_shows_how_far_it_is_in_a_terminal_and_nowhere_else(hub, monkeypatch, capsys):
    resolve(f"{hub.url}/quiet/module/1")
    assert "Downloading" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    resolve(f"{hub.url}/shown/module/1")
    captured = capsys.readouterr()
    assert f"Downloading {hub.url}/shown/module/1" in captured.err
    assert captured.out == ""
    assert "TFHUB_DOWNLOAD_PROGRESS" not in os.environ


@pytest.mark.parametrize("library", ["urllib", "requests"])
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:9/" + "long" * 80, "connection refused"),  # no machine listens there
        ("http://nowhere.invalid/", "no network, or no such host"),
    ],
)
def test_the_cause_of_a_failed_download_is_what_the_system_said(library, address, reason):
    ask = urllib.request.urlopen if library == "urllib" else pytest.importorskip("requests").get
    with pytest.raises(OSError) as caught:  # noqa: PT011  (its text is what is tested)
        ask(address, timeout=20)
    assert reason_of(caught.value) == reason


def test_offline_a_module_that_no_library_has_cached_is_refused_without_tensorflow(tmp_path):
    environment = os.environ | {
        "HUBRETRAIN_STORE": str(tmp_path / "store"),
        "TFHUB_CACHE_DIR": str(tmp_path / "hub"),
        "KAGGLEHUB_CACHE": str(tmp_path / "kaggle"),
        "HUBRETRAIN_OFFLINE": "1",
    }
    (tmp_path / "hub").mkdir()  # as a failed download leaves it
    code = (
        "import sys, hubretrain\n"
        "try: hubretrain.resolve('mobilenet_v2')\n"
        "except hubretrain.HubretrainError as error: print(error, file=sys.stderr)\n"
        "print(sorted({'tensorflow', 'tensorflow_hub', 'kagglehub'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert ran.stdout.strip() == "[]"
    assert ran.stderr.count("(the network is not used)") == 2
    assert "downloading" not in ran.stderr
