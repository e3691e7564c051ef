"""What belongs to the process is the same before, during and after work in threads."""

from __future__ import annotations

import http.server
import json
import locale
import logging
import os
import random
import signal
import socket
import sys
import threading
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_info

from hubretrain.data.images import decode, read_image, view
from hubretrain.data.near_duplicates.sketches import open_image
from hubretrain.errors import DataError
from hubretrain.files import folder_aside, replace_folder, write_json
from hubretrain.modules.network import network
from hubretrain.parallel import one_blas_thread
from hubretrain.quiet import silent_stderr
from hubretrain.storage import sha256_of
from tests.samples import encoded, web_server, write_digits


def umask() -> str:
    """The umask, read without setting it; blank where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((line for line in lines if line.startswith("Umask")), "")


def state() -> dict[str, object]:
    """Everything that belongs to the process and that a thread could change."""
    return {
        "umask": umask(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "locale": locale.setlocale(locale.LC_ALL),
        "signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "largest image": Image.MAX_IMAGE_PIXELS,
        "warnings": (list(warnings.filters), warnings.showwarning),
        "timeout": socket.getdefaulttimeout(),
        "sockets": (socket.socket.connect, socket.getaddrinfo, socket.socket),
        "streams": (sys.stdout, sys.stderr, sys.stdin, os.fstat(2).st_ino, os.fstat(1).st_ino),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "errors of numpy": np.geterr(),
        "recursion": sys.getrecursionlimit(),
        "logging": (logging.root.level, list(logging.root.handlers), logging.raiseExceptions),
    }


def blas() -> list[int]:
    return [library["num_threads"] for library in threadpool_info()]


def work(folder: Path, data: Path, i: int) -> None:
    """A little of everything that our threads do; pandas and scikit-learn change filters inside."""
    paths = [p.relative_to(data).as_posix() for p in sorted(data.rglob("*.png"))]
    for path in paths:
        view(read_image(data, path), 8)
        open_image(str(data / path))
        sha256_of(str(data / path))
    for wrong in ((folder / "large.png").read_bytes(), b"no image", b""):
        with pytest.raises(DataError):
            decode(wrong)
    with network(), silent_stderr(), one_blas_thread:
        np.ones((50, 50)) @ np.ones((50, 50))
        with one_blas_thread:
            write_json(folder / f"{i}.json", {"a": float("nan")})
    with folder_aside(folder / f"{i}") as aside:
        (aside / "new").mkdir()
        replace_folder(aside / "new", folder / f"{i}")


def test_eight_threads_leave_the_process_as_it_was_at_every_moment(tmp_path):
    data = write_digits(tmp_path / "data", 30)
    Image.new("1", (13_500, 13_500)).save(tmp_path / "large.png")
    work(tmp_path, data, 8)  # what is imported now is imported
    before, threads_of_blas = state(), blas()
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            now = state()
            seen.extend(name for name in before if now[name] != before[name])

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: work(tmp_path, data, i), range(8)))
    done.set()
    watcher.join()
    assert sorted(set(seen)) == []
    assert state() == before
    assert blas() == threads_of_blas
    assert json.loads((tmp_path / "3.json").read_text(encoding="utf-8")) == {"a": None}


def test_offline_only_the_thread_that_downloads_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"a")
    monkeypatch.setenv("HUBRETRAIN_OFFLINE", "1")
    with web_server(tmp_path, http.server.SimpleHTTPRequestHandler) as url:

        def ask() -> bytes:
            with urllib.request.urlopen(f"{url}/a.txt") as answer:
                return answer.read()

        with network(), ThreadPoolExecutor(1) as pool:
            assert pool.submit(ask).result() == b"a"
            with pytest.raises(OSError, match="the network is not used"):
                ask()
        assert ask() == b"a"


def test_a_connection_without_a_timeout_gets_one_while_a_module_is_downloaded():
    with socket.create_server(("127.0.0.1", 0)) as server:
        for inside, expected in ((True, 20.0), (False, None)):
            with socket.socket() as client:
                if inside:
                    with network():
                        client.connect(server.getsockname())
                else:
                    client.connect(server.getsockname())
                assert client.gettimeout() == expected


def test_encoded_pictures_are_the_same_from_every_thread(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = encoded(pixels)
    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(lambda _: np.asarray(decode(data)), range(32)))
    assert all(np.array_equal(image, pixels) for image in decoded)
