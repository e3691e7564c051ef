"""Where modules come from, over servers that answer as the real ones do."""

from __future__ import annotations

import http.server
import io
import json
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules import find_stored, network, read_catalogue, resolve, store, store_folder
from hubretrain.modules.archive import pack_folder, unpack_folder
from hubretrain.modules.backbone import Backbone
from hubretrain.modules.catalogue import HubModule, described, find
from hubretrain.modules.saved_model import tree_sha256
from hubretrain.tensorflow import tf
from tests.samples import write_module


def archived(folder: Path, *more: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False)
        for info in more:
            archive.addfile(info)
    return buffer.getvalue()


class Hub(http.server.BaseHTTPRequestHandler):
    """tfhub.dev: a handle with `?tf-hub-format=compressed` leads to a tar.gz elsewhere."""

    archive = b""
    asked: list[str]

    def do_GET(self):
        url = urlsplit(self.path)
        self.server.asked.append(self.path)
        kind = url.path.split("/")[1]
        archive = self.server.archive
        if kind == "storage":
            self.give(archive)
        elif parse_qs(url.query).get("tf-hub-format") != ["compressed"]:
            self.send_error(404)
        elif kind == "forbidden":
            self.send_error(403)
        elif kind == "truncated":
            self.give(archive[: len(archive) // 2])
        elif kind == "outside":
            self.give(self.server.outside)
        elif kind == "slow":
            self.server.stop.wait(20)
        else:
            self.send_response(302)
            self.send_header("Location", "/storage/module.tar.gz")
            self.end_headers()

    def give(self, data):
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Kaggle(Hub):
    """What kagglehub asks for: the list of a model's files, and each of them."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(f"{self.path} {json.dumps(body, sort_keys=True)}")
        folder = self.server.folder
        if body["instanceSlug"] == "gone":
            self.send_error(404)
        elif self.path.endswith("/ListModelInstanceVersionFiles"):
            files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
            names = [{"name": p.relative_to(folder).as_posix()} for p in files]
            self.give(json.dumps({"files": names, "nextPageToken": ""}).encode())
        elif self.path.endswith("/DownloadModelInstanceVersion"):
            self.give((folder / body["path"]).read_bytes())
        else:
            self.send_error(404)


def serve(handler, port=0, **facts):
    server = http.server.ThreadingHTTPServer(("localhost", port), handler)
    server.asked, server.stop = [], threading.Event()
    vars(server).update(facts)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


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


def test_a_handle_is_fetched_once_over_redirects_and_then_needs_no_server(hub, small_module):
    handle = f"{hub.url}/google/tiny/feature_vector/1"
    module = resolve(handle)
    assert module.name == "google_tiny_feature_vector_1"
    assert module.sha256 == tree_sha256(small_module)
    assert hub.asked == [
        "/google/tiny/feature_vector/1?tf-hub-format=compressed",
        "/storage/module.tar.gz",
    ]
    facts = json.loads((module.folder / "module.json").read_text())
    assert facts["handle"] == handle
    assert facts["versions"]["tensorflow"] == tf.__version__
    assert Backbone(module).stored.n_features == 5
    again = resolve(handle)
    assert again.probed
    assert len(hub.asked) == 2
    assert json.loads((module.folder / "module.json").read_text())["files"] == facts["files"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("forbidden/1", r"HTTP Error 403: Forbidden"),
        ("truncated/1", r"does not appear to be a valid module"),
        ("outside/1", r"Relative path '../../escaped.txt' is invalid"),
        ("slow/1", r"timed out"),
    ],
)
def test_an_answer_that_is_no_module_is_one_sentence_and_leaves_nothing(
    hub, path, reason, monkeypatch, tmp_path
):
    monkeypatch.setattr(network, "SECONDS_TO_ANSWER", 0.5)
    with pytest.raises(ModuleError, match=reason) as caught:
        resolve(f"{hub.url}/{path}")
    assert "cannot be had here; tried http://localhost" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(store_folder().iterdir()) == []
    assert not list(tmp_path.rglob("escaped.txt"))


def test_a_source_that_refuses_falls_through_to_the_next_and_says_so(
    hub, kaggle, monkeypatch, caplog, small_module
):
    caplog.set_level("INFO", logger="hubretrain")
    pytest.importorskip("kagglehub")
    known = HubModule(
        "tiny",
        (),
        "tfhub",
        8,
        5,
        (0.0, 1.0),
        f"{hub.url}/forbidden/1",
        "google/tiny/tensorFlow2/a/1",
    )
    monkeypatch.setattr(sys.modules[described.__module__], "read_catalogue", lambda: (known,))
    module = resolve("tiny")
    assert module.handle == "kaggle:google/tiny/tensorFlow2/a/1"
    assert module.sha256 == tree_sha256(small_module)
    said = caplog.text
    assert "tiny comes from kaggle:google/tiny/tensorFlow2/a/1; it could not be downlo" in said
    assert "HTTP Error 403: Forbidden" in said
    assert resolve("tiny").folder == module.folder


def test_kaggle_models_come_through_kagglehub_by_handle_and_by_page(kaggle, small_module):
    handle = "kaggle:google/tiny/tensorFlow2/feature-vector/2"
    module = resolve(handle)
    assert module.sha256 == tree_sha256(small_module)
    assert module.name == "google_tiny_tensorFlow2_feature-vector_2"
    n_asked = len(kaggle.asked)
    assert n_asked == 1 + sum(p.is_file() for p in small_module.rglob("*"))
    for page in (
        "tensorFlow2/feature-vector/2",
        "frameworks/TensorFlow2/variations/feature-vector/versions/2",
    ):
        assert resolve(f"https://www.kaggle.com/models/google/tiny/{page}") == module
    shutil.rmtree(module.folder)
    assert resolve(handle) == module  # from kagglehub's own cache
    assert len(kaggle.asked) == n_asked
    with pytest.raises(ModuleError, match=r"tried kaggle:google/tiny/tensorFlow2/gone/1 \(.*404"):
        resolve("kaggle:google/tiny/tensorFlow2/gone/1")


def test_a_half_deleted_store_or_cache_is_repaired(hub, small_module, caplog):
    handle = f"{hub.url}/google/tiny/1"
    module = resolve(handle)
    next((module.folder / "variables").glob("*.data*")).unlink()
    assert find_stored(module.name) is None
    n_asked = len(hub.asked)
    assert tree_sha256(resolve(handle).folder) == module.sha256  # from the hub's cache
    assert "is damaged or another module; making it anew" in caplog.text
    assert len(hub.asked) == n_asked
    shutil.rmtree(module.folder)
    for left in Path(os.environ["TFHUB_CACHE_DIR"]).rglob("saved_model.pb"):
        left.unlink()
    assert tree_sha256(resolve(handle).folder) == module.sha256  # fetched again
    assert len(hub.asked) == n_asked + 2


def test_offline_nothing_is_asked_for_and_caches_are_honoured(hub, monkeypatch):
    handle = f"{hub.url}/google/tiny/1"
    monkeypatch.setenv("HUBRETRAIN_OFFLINE", "1")
    with pytest.raises(ModuleError, match=r"offline: the network is not used"):
        resolve(handle)
    assert hub.asked == []
    monkeypatch.setenv("HUBRETRAIN_OFFLINE", "0")
    module = resolve(handle)
    shutil.rmtree(module.folder)
    monkeypatch.setenv("HUBRETRAIN_OFFLINE", "1")
    assert resolve(handle) == module  # from TFHUB_CACHE_DIR
    assert len(hub.asked) == 2


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


def test_a_full_disk_is_one_sentence_and_two_processes_may_fetch_the_same(hub):
    handle = f"{hub.url}/some/module/1"
    first = resolve(handle)
    shutil.rmtree(first.folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(
            ModuleError, match=r"/store/ cannot be written \(.*too large.*make room"
        ):
            resolve(handle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(store_folder().iterdir()) == []
    with ThreadPoolExecutor(4) as pool:
        assert {m.sha256 for m in pool.map(resolve, [handle] * 4)} == {first.sha256}


def test_what_a_killed_fetch_left_is_removed_a_day_later(hub):
    handle = f"{hub.url}/some/module/1"
    name = described(handle).name
    left = [store_folder() / f".{name}.{what}" for what in ("old", "running")]
    for folder in left:
        (folder / "module").mkdir(parents=True)
    os.utime(left[0], (1e9, 1e9))
    resolve(handle)
    assert [folder.exists() for folder in left] == [False, True]


def test_an_archive_is_a_module_and_a_changed_one_another(tmp_path, small_module):
    archive = tmp_path / "my module.tar.gz"
    archive.write_bytes(archived(small_module))
    module = resolve(str(archive))
    assert (module.name, module.sha256) == ("my_module", tree_sha256(small_module))
    assert resolve(str(archive)) == module
    other = write_module(tmp_path / "other" / "inner", seed=5)
    archive.write_bytes(archived(other.parent))  # in a folder of its own
    assert resolve(str(archive)).sha256 == tree_sha256(other)
    archive.unlink()  # what is stored stays usable
    assert resolve(str(archive)).sha256 == tree_sha256(other)


@pytest.mark.parametrize("what", ["outside", "link", "large", "truncated", "nothing", "text"])
def test_an_archive_that_is_not_safe_or_no_module_is_refused(
    tmp_path, small_module, what, monkeypatch
):
    info = tarfile.TarInfo("../escaped.txt" if what == "outside" else "variables/link")
    if what == "link":
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    whole = archived(small_module, *([info] if what in ("outside", "link") else []))
    empty = tmp_path / "empty"
    (empty / "sub").mkdir(parents=True)
    data = {
        "truncated": whole[: len(whole) // 2],
        "nothing": archived(empty),
        "text": b"not an archive at all",
    }.get(what, whole)
    if what == "large":
        monkeypatch.setattr("hubretrain.modules.archive.MOST_BYTES", 1000)
    archive = tmp_path / "module.tar.gz"
    archive.write_bytes(data)
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path / "store"))
    message = {
        "outside": r"holds ../escaped.txt, which would be written outside",
        "link": r"holds variables/link, which is no plain file; links and devices",
        "large": r"unpacks to more than .* GiB; that is no module",
        "truncated": r"cannot be unpacked .*truncated or damaged",
        "nothing": r"holds no saved_model.pb; expected one module",
        "text": r"cannot be unpacked",
    }[what]
    with pytest.raises(ModuleError, match=message):
        resolve(str(archive))
    assert list((tmp_path / "store").iterdir()) == []
    assert not list(tmp_path.rglob("escaped.txt"))


def test_a_packed_module_is_unpacked_once_and_anew_where_files_were_lost(
    small_module, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = pack_folder(small_module)
    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(unpack_folder, [data] * 4))
    assert pack_folder(folder) == data
    assert list(folder.parent.iterdir()) == [folder]
    os.utime(folder / "saved_model.pb", (1e9, 1e9))
    assert unpack_folder(data) == folder
    assert (folder / "saved_model.pb").stat().st_mtime == 1e9  # as it was
    (folder / "saved_model.pb").unlink()
    assert pack_folder(unpack_folder(data)) == data


def test_a_classifier_is_refused_before_it_is_fetched(hub):
    with pytest.raises(ModuleError, match=r"is a classifier; .*/v2/feature_vector/5"):
        resolve(f"{hub.url}/v2/classification/5")
    assert hub.asked == []


def test_a_range_that_is_documented_is_not_overridden_and_one_that_is_not_is_asked_for():
    with pytest.raises(ModuleError, match=r"vit_b16 takes values in \[-1, 1\], not in \[0, 1\]"):
        store._refuse_range(find("vit_b16"), (0.0, 1.0))
    with pytest.raises(ModuleError, match=r"convnext_tiny_1k_224 does not document the range"):
        resolve("convnext_tiny_1k_224")


def test_every_network_that_is_compared_most_has_a_short_name():
    mobile = "mobilenet_v1_100 mobilenet_v1_075 nasnet_mobile inception_v3"
    large = "vgg16 vgg19 resnet50 resnet152 densenet121 densenet169"
    for name in f"{mobile} {large}".split():
        assert described(name) is not None, name
    assert {m.source for m in read_catalogue()} == {"lite", "tfhub", "keras"}


def test_an_image_size_that_is_asked_for_is_built_into_a_network_of_keras(monkeypatch, tmp_path):
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path))
    monkeypatch.setattr("hubretrain.modules.sources.build_module", lambda handle, _: refuse(handle))

    def refuse(handle):
        raise ModuleError(f"asked for {handle}")

    with pytest.raises(ModuleError, match=r"vgg16_96px .*asked for keras:VGG16\?image_size=96"):
        resolve("vgg16", image_size=96)


def test_a_changed_module_under_the_same_handle_is_refused_by_a_resumed_cache(hub, tmp_path):
    from hubretrain.data.dataset import open_dataset
    from hubretrain.errors import CacheError
    from hubretrain.extraction.cache import cache_bottlenecks
    from tests.samples import write_digits

    handle = f"{hub.url}/google/tiny/1"
    data = open_dataset(write_digits(tmp_path / "digits", 6))
    options = {"folder": tmp_path / "cache", "n_views": 1, "engine": "tensorflow"}
    before = resolve(handle)
    cache_bottlenecks(data, [before], **options)
    hub.archive = archived(write_module(tmp_path / "changed", seed=9))
    shutil.rmtree(before.folder)
    shutil.rmtree(os.environ["TFHUB_CACHE_DIR"])
    after = resolve(handle)
    with pytest.raises(CacheError) as caught:
        cache_bottlenecks(data, [after], **options)
    assert f"module_sha256 = {before.sha256}, now {after.sha256} is asked for" in str(caught.value)
