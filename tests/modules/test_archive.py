from __future__ import annotations

import os
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules import resolve
from hubretrain.modules.archive import pack_folder, unpack_folder
from hubretrain.modules.saved_model import tree_sha256
from tests.modules.hubs import archived
from tests.samples import write_module


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
        monkeypatch.setattr("hubretrain.modules.archive.MAX_BYTES", 1000)
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
