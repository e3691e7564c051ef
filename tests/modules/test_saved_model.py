from __future__ import annotations

import os
import shutil

import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules import resolve
from hubretrain.modules.saved_model import not_a_module, tree_sha256
from tests.samples import write_module


def test_a_moved_folder_is_the_same_module_and_a_changed_one_is_not(tmp_path):
    folder = write_module(tmp_path / "a", seed=1)
    before = tree_sha256(folder)
    shutil.move(folder, tmp_path / "b")
    assert tree_sha256(tmp_path / "b") == before
    variables = next((tmp_path / "b" / "variables").glob("*.data*"))
    data = bytearray(variables.read_bytes())
    data[5] ^= 1
    variables.write_bytes(data)
    assert tree_sha256(tmp_path / "b") != before


def test_a_pipe_in_the_place_of_weights_is_a_missing_file(tmp_path):
    folder = write_module(tmp_path / "a", seed=1)
    (data,) = (folder / "variables").glob("*.data*")
    data.unlink()
    os.mkfifo(data)
    with pytest.raises(ModuleError, match=r"holds 0 of 1 variables/variables\.data files"):
        resolve(str(folder))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("net.tflite", "is a LiteRT file, made for inference alone; name the folder of the SavedM"),
        (
            "net.h5",
            r"is a Keras file; write .*\.save\(FILE\.keras\)` .*or name keras:NAME\?weights=",
        ),
        ("model.safetensors", "is a file of weights without a network; compute its features with"),
        ("net.pth", "is a file of weights without a network; .*`hubretrain cache import`"),
        ("net.pt", "is a file of weights without a network"),
        (
            "net.engine",
            "is a network of another runtime, made for inference alone; .*cache import`",
        ),
        ("net.mlmodel", "is a network of another runtime"),
        ("features.npz", "is a file of numbers; take features in by `hubretrain cache import`"),
        ("saved_model.pb", "is one file of a module; name the folder of its SavedModel"),
    ],
)
@pytest.mark.parametrize("where", ["", "here/", "https://example.org/"])
def test_a_file_of_another_format_is_refused_with_what_to_do(
    tmp_path, monkeypatch, where, name, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / name).write_bytes(b"")
    with pytest.raises(ModuleError, match=f"^{where}{name} {sentence}"):
        resolve(where + name)


def test_a_folder_may_be_called_as_a_file_of_another_format(tmp_path):
    folder = write_module(tmp_path / "net.h5")
    assert resolve(folder).name == "net.h5"


def test_a_file_of_an_unknown_kind_exists_and_is_no_module(tmp_path):
    (tmp_path / "net.weights").write_bytes(b"x")
    with pytest.raises(ModuleError, match=r"net\.weights is a file of no kind that is known; exp"):
        resolve(tmp_path / "net.weights")


@pytest.mark.parametrize(
    "name", ["net.onnx", "net.keras", "net.tar.gz", "net.h5", "saved_model.pb"]
)
def test_a_pointer_of_git_lfs_is_told_from_the_file(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 3\n")
    module = tmp_path if name == "saved_model.pb" else tmp_path / name
    with pytest.raises(ModuleError, match=rf"{name} is a pointer of Git LFS.*run `git lfs pull`"):
        resolve(module)


def test_the_reason_of_a_damaged_archive_is_one_line(tmp_path):
    (tmp_path / "net.tar.gz").write_bytes(b"x")
    with pytest.raises(ModuleError) as error:
        resolve(tmp_path / "net.tar.gz")
    assert "\n" not in str(error.value)


def test_a_file_that_is_called_as_a_module_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vgg16").write_bytes(b"x")
    assert not not_a_module("vgg16")
