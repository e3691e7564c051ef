from __future__ import annotations

import tarfile

import pytest

from tests.modules.hubs import Hub, Kaggle, archived, serve


@pytest.fixture
def hub(tmp_path, monkeypatch, small_module):
    """A hub; its address is in `hub.url`."""
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub_cache"))
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path / "store"))
    escape = tarfile.TarInfo("../../escaped.txt")
    server = serve(Hub, archive=archived(small_module), outside=archived(small_module, escape))
    server.url = f"http://localhost:{server.server_port}"
    yield server
    server.stop.set()
    server.shutdown()


@pytest.fixture
def kaggle(tmp_path, monkeypatch, small_module):
    pytest.importorskip("kagglehub")
    try:
        server = serve(Kaggle, port=7777, folder=small_module)  # where kagglehub looks in tests
    except OSError:
        pytest.skip("port 7777, which kagglehub knows as its test server, is taken")
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle_cache"))
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path / "store"))
    yield server
    server.shutdown()
    server.server_close()
