from __future__ import annotations

import functools
import http.server
import os
import sys
import threading

import numpy as np
import pandas as pd
import pytest

from hubretrain.errors import CacheError, DataError
from hubretrain.extraction import CacheOptions
from hubretrain.storage import is_remote, located, read_bytes, stamp_of
from tests.samples import encoded, write_digits

pytest.importorskip("fsspec")


class Server(http.server.SimpleHTTPRequestHandler):
    """A file server that counts what is asked of it."""

    asked: list[str]
    fails_again: str = ""

    def do_GET(self):
        self.asked.append(self.path)
        if self.fails_again == self.path and self.asked.count(self.path) > 1:
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    """A folder of digits at http://127.0.0.1:port/, and what was asked for."""
    pytest.importorskip("aiohttp")
    folder = write_digits(tmp_path / "served", 30)
    handler = type("Handler", (Server,), {"asked": []})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()


def test_a_path_is_below_its_folder_and_a_url_is_where_it_says(tmp_path):
    assert located(tmp_path, "a/b.png") == str(tmp_path / "a" / "b.png")
    assert located(tmp_path, "s3://bucket/b.png") == "s3://bucket/b.png"
    assert is_remote("https://host/x.jpg")
    assert not is_remote("a:/b.jpg")


def test_bytes_and_stamps_come_from_memory_as_from_any_storage():
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe_file("/here/x.png", b"first")
    assert read_bytes("memory://here/x.png") == b"first"
    before = stamp_of("memory://here/x.png")
    files.pipe_file("/here/x.png", b"other")
    assert stamp_of("memory://here/x.png") != before
    with pytest.raises(OSError, match=r"nothing"):
        read_bytes("memory://here/nothing.png")


def test_what_http_serves_is_read(served):
    folder, url, _ = served
    image = sorted(folder.rglob("*.png"))[0]
    place = f"{url}/{image.relative_to(folder).as_posix()}"
    assert read_bytes(place) == image.read_bytes()
    size, version, _ = stamp_of(place)
    assert size == image.stat().st_size
    image.write_bytes(encoded(np.zeros((8, 8, 3), np.uint8)))
    assert stamp_of(place) != (size, version, 0)
    before = stamp_of(place)
    os.utime(image, (1, 1))
    assert stamp_of(place)[0] == before[0]
    assert stamp_of(place) != before  # of the same size, changed at another time
    with pytest.raises(OSError, match=r"nothing.png"):
        read_bytes(f"{url}/nothing.png")


def test_a_url_that_nothing_reads_is_a_sentence(monkeypatch):
    with pytest.raises(DataError, match=r"nix://a/b cannot be read as a URL"):
        read_bytes("nix://a/b")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(DataError, match=r"install it with: pip install 'hubretrain\[remote\]'"):
        read_bytes("https://host/x.jpg")


def table_of(folder, url):
    rows = [
        (f"{url}/{image.relative_to(folder).as_posix()}", image.parent.name)
        for image in sorted(folder.rglob("*.png"))
    ]
    return pd.DataFrame(rows, columns=["path", "label"])


def test_images_at_urls_are_cached_and_cost_nothing_the_second_time(
    served, small_module, tmp_path, monkeypatch
):
    from hubretrain.bottlenecks import Bottlenecks
    from hubretrain.data.dataset import open_dataset
    from hubretrain.extraction.cache import cache_bottlenecks
    from hubretrain.modules import resolve

    folder, url, handler = served
    home = tmp_path / "home"
    home.mkdir()
    table_of(folder, url).to_csv(home / "labels.csv", index=False)
    options = CacheOptions(n_views=2, engine="tensorflow")
    modules = [resolve(str(small_module))]
    data = open_dataset(home, labels=home / "labels.csv")
    (far,) = cache_bottlenecks(data, modules, options, cache=tmp_path / "far")
    assert far.n_computed == 60
    (near,) = cache_bottlenecks(open_dataset(folder), modules, options, cache=tmp_path / "near")
    with Bottlenecks(far.file) as one, Bottlenecks(near.file) as two:
        assert np.array_equal(one.rows(two.sha256s, 1), two.rows(two.sha256s, 1))
    n_asked = len(handler.asked)
    (again,) = cache_bottlenecks(data, modules, options, cache=tmp_path / "far")
    assert again.n_computed == 0
    assert len(handler.asked) == n_asked  # the server was asked for versions only, not for images


def test_an_image_that_a_server_fails_to_give_is_done_by_the_next_run(
    served, small_module, tmp_path
):
    from hubretrain.data.dataset import open_dataset
    from hubretrain.extraction.cache import cache_bottlenecks
    from hubretrain.modules import resolve

    folder, url, handler = served
    home = tmp_path / "home"
    home.mkdir()
    table = table_of(folder, url)
    table.to_csv(home / "labels.csv", index=False)
    options, cache = CacheOptions(n_views=2, engine="tensorflow"), tmp_path / "cache"
    modules = [resolve(str(small_module))]
    data = open_dataset(home, labels=home / "labels.csv")
    handler.fails_again = table["path"][7].removeprefix(url)
    with pytest.raises(CacheError, match=r"1 images could not be read, the first http://.*503"):
        cache_bottlenecks(data, modules, options, cache=cache)
    handler.fails_again = ""
    (found,) = cache_bottlenecks(data, modules, options, cache=cache)
    assert (found.n_computed, found.n_quarantined) == (2, 0)
