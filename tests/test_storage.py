from __future__ import annotations

import http.server
import os
import socket
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubretrain.data import TableOptions, open_dataset, reopen_dataset
from hubretrain.data.digests import image_digests
from hubretrain.errors import CacheError, DataError
from hubretrain.extraction import CacheOptions
from hubretrain.storage import (
    PRIVATE_ADDRESSES,
    SCHEMES,
    check_url,
    is_public,
    is_remote,
    located,
    open_bytes,
    read_bytes,
    sha256_of,
    stamp_of,
)
from tests.samples import encoded, web_server, write_digits

fsspec = pytest.importorskip("fsspec")


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
def served(tmp_path, monkeypatch):
    """A folder of digits at http://127.0.0.1:port/, and what was asked for."""
    pytest.importorskip("aiohttp")
    monkeypatch.setenv(PRIVATE_ADDRESSES, "10.0.0.0/8, 127.0.0.1")
    folder = write_digits(tmp_path / "served", 30)
    handler = type("Handler", (Server,), {"asked": []})
    with web_server(folder, handler) as url:
        yield folder, url, handler


def test_a_path_is_below_its_folder_and_a_url_is_where_it_says(tmp_path):
    assert located(tmp_path, "a/b.png") == str(tmp_path / "a" / "b.png")
    assert located(tmp_path, "s3://bucket/b.png") == "s3://bucket/b.png"
    assert is_remote("https://host/x.jpg")
    assert not is_remote("a:/b.jpg")


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


def test_without_the_library_a_url_is_a_sentence_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(DataError, match=r"install it with: pip install 'hubretrain\[remote\]'"):
        read_bytes("https://host/x.jpg")


HOSTILE = [
    *("file:///etc/passwd", "local://etc/passwd", "memory://a/b", "nix://a/b", "ftp://host/x.jpg"),
    *("reference://k::http://host/refs.json", "https://a/x.jpg::file:///etc/passwd"),
    *("zip://x.jpg::https://host/a.zip", "simplecache::https://host/x.jpg", "dir://x::/etc"),
    *("reference://k::data:application/json;base64,e30=", "data://x", "sftp://host/x", "ssh://h/x"),
    *("HTTPS://host/x.jpg", " https://host/x.jpg", "https://host/x y.jpg", "https://h/\r\nX: y"),
    *("github://o:r@/x", "jupyter://h/x", "hdfs://h/x", "smb://h/x", "s3a://b/x", "gcs://b/x"),
    *("://x", "abfs://c/x", "arrow_hdfs://h", "git://p:r@x", "cached://x", "blockcache://x"),
]


@pytest.mark.parametrize("url", HOSTILE)
def test_only_four_protocols_are_read_and_no_chains(url):
    for read in (read_bytes, stamp_of, open_bytes, sha256_of, check_url):
        with pytest.raises(DataError, match=r"is no URL that is read; expected one that begins"):
            read(url)


@given(st.from_regex(r"[a-z0-9+.:]{0,12}://[ -~]{0,20}", fullmatch=True))
def test_whatever_stands_before_the_slashes_only_four_protocols_pass(url):
    try:
        check_url(url)
    except DataError:
        return
    assert url.partition("://")[0] in SCHEMES
    assert "::" not in url


@pytest.mark.parametrize("url", [url for url in HOSTILE if url == url.strip()])
@pytest.mark.parametrize("is_named", [True, False])
def test_a_table_with_such_a_cell_is_refused_before_anything_is_read(tmp_path, url, is_named):
    table = tmp_path / "d" / "metadata.csv"
    for name in "ab":
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "1.png").write_bytes(encoded(np.zeros((8, 8, 3), np.uint8)))
    rows = [("a/1.png", "a"), ("b/1.png", "b"), (url, "a")]
    pd.DataFrame(rows, columns=["file_name", "label"]).to_csv(table, index=False)
    with pytest.raises(DataError, match=r"metadata.csv: .* is no URL that is read"):
        open_dataset(tmp_path / "d", labels=table if is_named else None)


def test_a_table_that_was_recognised_by_itself_opens_the_network_only_if_told_to(served, tmp_path):
    folder, url, handler = served
    home = tmp_path / "home"
    home.mkdir()
    table_of(folder, url).rename(columns={"path": "file_name"}).to_csv(
        home / "metadata.csv", index=False
    )
    with pytest.raises(DataError, match=r"metadata.csv names images at URLs .* use `remote`"):
        open_dataset(home)
    assert handler.asked == []
    dataset = open_dataset(home, table=TableOptions(remote=True))
    assert len(dataset.digests(tmp_path / "cache")) == 30
    again = reopen_dataset(home, dataset.opened_with)
    assert again.images.equals(dataset.images)


class Redirecting(Server):
    """Sends everyone elsewhere."""

    to = ""

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(302)
        self.send_header("Location", self.to)
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "0x7f.1", "2130706433"])
def test_private_addresses_are_not_asked_whatever_their_name(served, monkeypatch, host):
    _, url, handler = served
    monkeypatch.setenv(PRIVATE_ADDRESSES, "10.0.0.0/8")
    place = url.replace("127.0.0.1", host) + "/0/0000.png"
    # An address that is written in an unusual way may be refused for that already.
    reason = "canonical" if host in ("127.1", "2130706433") else rf"private.*{PRIVATE_ADDRESSES}=\d"
    for read in (read_bytes, stamp_of, open_bytes):
        with pytest.raises(OSError, match=reason):
            read(place)
    assert handler.asked == []


def test_a_redirect_leads_to_no_private_address_but_those_that_are_permitted(
    served, tmp_path, monkeypatch
):
    folder, url, handler = served
    redirecting = type("Handler", (Redirecting,), {"asked": [], "to": f"{url}/0/0000.png"})
    with web_server(tmp_path, redirecting, "127.0.0.2") as first:
        monkeypatch.setenv(PRIVATE_ADDRESSES, "127.0.0.2")
        with pytest.raises(OSError, match=r"127\.0\.0\.1 is a private address"):
            read_bytes(f"{first}/x.png")
        assert redirecting.asked == ["/x.png"]
        assert handler.asked == []
        monkeypatch.setenv(PRIVATE_ADDRESSES, "127.0.0.0/8")
        assert read_bytes(f"{first}/x.png") == (folder / "0" / "0000.png").read_bytes()


def test_addresses_of_the_internet_are_told_from_all_others():
    public = ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")
    private = (
        *("127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "224.0.0.1", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1"),
        *("2002:7f00:1::", "64:ff9b::7f00:1", "ff02::1", "255.255.255.255"),
    )
    assert [a for a in public if not is_public(a)] == []
    assert [a for a in private if is_public(a)] == []


class Endless(Server):
    """Never stops sending."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(2**20))
        except OSError:
            pass


def test_a_body_without_an_end_is_read_no_further_than_its_bound(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setenv(PRIVATE_ADDRESSES, "10.0.0.0/8, 127.0.0.1")
    monkeypatch.setattr("hubretrain.storage.MAX_BYTES", 3 * 2**20)
    with (
        web_server(tmp_path, type("Handler", (Endless,), {"asked": []})) as url,
        pytest.raises(OSError, match="it has more than 3,145,728 bytes"),
    ):
        read_bytes(f"{url}/x.jpg")


def special_files(folder):
    """What is no regular file, or has no end: path and the reason why it is refused."""
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "terminal.jpg").symlink_to("/dev/ptmx")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.jpg"))
    with open(folder / "sparse.jpg", "wb") as file:
        file.truncate(40 * 2**30)
    return {
        "pipe.jpg": "it is a named pipe, not a regular file",
        "zero.jpg": "it is a device, not a regular file",
        "terminal.jpg": "it is a device, not a regular file",
        "socket.jpg": "it is a socket, not a regular file|No such device or address",
        "sparse.jpg": "it has 42,949,672,960 bytes; at most 536,870,912 are read",
    }


def test_pipes_devices_sockets_and_sparse_giants_are_refused_at_once_by_every_reader(tmp_path):
    from hubretrain.data.images import UnreadableImageError, read_headers, read_image
    from hubretrain.data.near_duplicates.table import find_near_duplicates

    for name, reason in special_files(tmp_path).items():
        for read in (read_bytes, open_bytes, sha256_of, stamp_of):
            with pytest.raises(OSError, match=reason):
                read(str(tmp_path / name))
        with pytest.raises(UnreadableImageError, match=reason):
            read_image(tmp_path, name)
        assert read_headers(tmp_path, [name])["format"].tolist() == [""]
        with pytest.raises(DataError, match=reason):
            image_digests(tmp_path, [name], tmp_path / "cache")
        with pytest.raises(DataError, match=reason):
            find_near_duplicates(tmp_path, [name], ["0" * 64], tmp_path / "cache")


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
