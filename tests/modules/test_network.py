from __future__ import annotations

import os
import shutil
import sys

import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules import resolve
from hubretrain.modules.network import reason_of


def test_offline_nothing_is_asked_for_and_caches_are_honoured(hub, monkeypatch):
    handle = f"{hub.url}/google/tiny/1"
    monkeypatch.setenv("HUBRETRAIN_OFFLINE", "1")
    with pytest.raises(ModuleError, match=r"offline: the network is not used"):
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
    with pytest.raises(ModuleError, match=r"keras:MobileNet\?alpha=0.25 cannot be built.*offline"):
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


def test_the_cause_of_a_failed_download_is_found_behind_an_address_of_any_length():
    error = OSError(
        "HTTPSConnectionPool(host='www.kaggle.com', port=443): Max retries exceeded with url: "
        f"/api/v1/models/{'long' * 80} (Caused by NewConnectionError('<urllib3.connection."
        "HTTPSConnection object at 0x7f>: Failed to establish a new connection: [Errno 101] "
        "Network is unreachable'))"
    )
    assert reason_of(error) == "[Errno 101] Network is unreachable"
