"""HDF5 files of strangers: nothing but plain data of the file itself is ever touched."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from hubretrain.errors import HubretrainError
from hubretrain.hdf5 import array_in, open_hdf5, write_digest_block


def plain(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["flag"], file.attrs["list"] = "x", True, ["a", "b"]
        file["deep/numbers"] = np.arange(12, dtype=np.float32).reshape(4, 3)
        file["deep/texts"] = np.array(["a", "é"], dtype=h5py.string_dtype())
        file["digests"] = np.zeros(2, dtype="S64")
        file["table"] = np.zeros(2, dtype=[("layer", "S3"), ("first", "<i4")])
        file["empty"] = np.zeros((0, 3), np.float32)
        file["again"] = file["deep"]  # a hard link, even to a group above, is plain
        file["deep/up"] = file["deep"]
    return path


def soft_link(file: h5py.File, other: Path) -> None:
    file["bad"] = h5py.SoftLink("/deep/numbers")


def external_link(file: h5py.File, other: Path) -> None:
    file["deep/bad"] = h5py.ExternalLink(str(other), "/deep/numbers")


def external_storage(file: h5py.File, other: Path) -> None:
    external = [(str(other), 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("bad", (8,), "u1", external=external)


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource(str(other), "deep/numbers", (4, 3))
    file.create_virtual_dataset("bad", layout)


def reference(file: h5py.File, other: Path) -> None:
    file["bad"] = np.array([file["deep"].ref], dtype=h5py.ref_dtype)


def region(file: h5py.File, other: Path) -> None:
    file["bad"] = np.array([file["deep/numbers"].regionref[:2]], dtype=h5py.regionref_dtype)


def reference_in_a_column(file: h5py.File, other: Path) -> None:
    file["bad"] = np.array([(1, file.ref)], dtype=[("n", "i4"), ("r", h5py.ref_dtype)])


def reference_in_an_attribute(file: h5py.File, other: Path) -> None:
    file["deep/numbers"].attrs["bad"] = file.ref


def lists(file: h5py.File, other: Path) -> None:
    file.create_dataset("bad", (2,), h5py.vlen_dtype(np.int64))


def named_type(file: h5py.File, other: Path) -> None:
    file["bad"] = np.dtype("f8")


def chunks(file: h5py.File, other: Path) -> None:
    file.create_dataset("bad", data=np.zeros((99, 9)), chunks=True, compression="gzip")


def giant(file: h5py.File, other: Path) -> None:
    file.create_dataset("bad", (2**40, 2**10), "f4")  # never written: allocated as it is read


HOSTILE = [
    *(soft_link, external_link, external_storage, virtual, reference, region),
    *(reference_in_a_column, reference_in_an_attribute, lists, named_type, chunks, giant),
]


def test_a_plain_file_is_read_as_it_was_written(tmp_path):
    with open_hdf5(plain(tmp_path / "a.h5")) as file:
        assert file["deep/numbers"][:].sum() == 66
        assert list(file["deep/texts"].asstr()) == ["a", "é"]
    with open_hdf5(tmp_path / "a.h5", "r+", locking=False) as file:
        file["deep/numbers"][0] = 1


@pytest.mark.parametrize("spoil", HOSTILE)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_what_is_no_plain_data_is_refused(tmp_path, spoil, mode):
    other = plain(tmp_path / "other.h5")
    before = other.read_bytes()
    with h5py.File(plain(tmp_path / "a.h5"), "r+") as file:
        spoil(file, other)
    with pytest.raises(OSError, match=r"bad.* (is|should have) "):
        open_hdf5(tmp_path / "a.h5", mode)
    assert other.read_bytes() == before
    os.remove(tmp_path / "a.h5")  # it was closed again


def test_weights_of_others_may_be_in_chunks_but_touch_no_other_file(tmp_path):
    other = plain(tmp_path / "other.h5")
    for spoil in HOSTILE:
        with h5py.File(plain(tmp_path / "a.h5"), "w") as file:
            file["deep/numbers"] = np.zeros((4, 3), np.float32)
            spoil(file, other)
        if spoil in (chunks, giant):
            open_hdf5(tmp_path / "a.h5", is_ours=False).close()
        else:
            with pytest.raises(OSError, match="bad"):
                open_hdf5(tmp_path / "a.h5", is_ours=False)


def test_a_pipe_a_device_and_a_folder_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "zero.h5").symlink_to("/dev/zero")
    for path, reason in (("pipe.h5", "a named pipe"), ("zero.h5", "a device"), (".", "directory")):
        with pytest.raises(OSError, match=reason):
            open_hdf5(tmp_path / path)


def test_an_array_of_another_type_or_number_of_axes_is_refused_before_it_is_read(tmp_path):
    with open_hdf5(plain(tmp_path / "a.h5")) as file:
        assert array_in(file, "deep/numbers", "f", 2).shape == (4, 3)
        assert array_in(file, "deep/texts", "O", 1).shape == (2,)
        for name, kinds, n_axes in (
            *(("deep/numbers", "i", 2), ("deep/numbers", "f", 1), ("deep", "f", 2)),
            *(("gone", "f", 2), ("deep/numbers/x", "f", 2), ("digests", "O", 1)),
        ):
            with pytest.raises(OSError, match=rf"^{name} (is|cannot)"):
                array_in(file, name, kinds, n_axes)


def bottlenecks(path: Path) -> None:
    from hubretrain.bottlenecks import Bottlenecks
    from tests.bottlenecks.samples import LAYERS, make

    if not path.exists():
        make(path, layers=LAYERS)
    Bottlenecks(path).close()


def writer(path: Path) -> None:
    from tests.bottlenecks.samples import LAYERS, make

    make(path, layers=LAYERS)


def head_file(path: Path) -> None:
    from hubretrain.evaluation import DecisionRule
    from hubretrain.heads import Head, ModuleHeads

    if not path.exists():
        rule = DecisionRule(0.0, (0.5, 0.5))
        head = Head("softmax", np.eye(3, 2), np.zeros(2), rule, np.ones(2), layers=("a",))
        ModuleHeads(head, head, head, ("a", "b")).save(path, {"module": "small"})
    ModuleHeads.load(path)


READERS = (bottlenecks, writer, head_file)


def write_digest_again(path: Path) -> None:
    """Make the digest that of the changed bytes, as who means harm would do."""
    with h5py.File(path) as file:
        n_bytes = file.userblock_size
    write_digest_block(path, n_bytes)


def names_of(path: Path) -> list[str]:
    with h5py.File(path) as file:
        names: list[str] = []
        file.visit(names.append)
        return names


WRONG = {
    "a number": np.float64(1),
    "text": np.array("x", dtype=h5py.string_dtype()),
    "texts": np.array(["x", "y"], dtype=h5py.string_dtype()),
    "bytes": np.array([b"\xff\xfe"]),
    "three axes": np.zeros((2, 2, 2), np.float32),
    "none": np.zeros((0, 0), np.float32),
    "whole numbers": np.arange(5),
    "truth": np.array([True]),
    "nothing": h5py.Empty("f4"),
    "a group": None,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_every_reader_refuses_every_array_of_a_wrong_kind_with_a_sentence(tmp_path, reader, wrong):
    path = tmp_path / "small.h5"
    reader(path)
    sound = path.read_bytes()
    for name in names_of(path):
        path.write_bytes(sound)
        with h5py.File(path, "r+") as file:
            attributes = dict(file[name].attrs)
            del file[name]
            if WRONG[wrong] is None:
                file.create_group(name)
            else:
                file[name] = WRONG[wrong]
            file[name].attrs.update(attributes)
        write_digest_again(path)
        with contextlib.suppress(HubretrainError):  # any other error is a traceback for the user
            reader(path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("spoil", [external_link, external_storage, virtual, giant])
def test_every_reader_refuses_what_is_no_plain_data(tmp_path, reader, spoil):
    other, path = plain(tmp_path / "other"), tmp_path / "small.h5"
    reader(path)
    with h5py.File(path, "r+") as file:
        file.create_group("deep")
        spoil(file, other)
    write_digest_again(path)
    with pytest.raises(HubretrainError, match="bad"):
        reader(path)
