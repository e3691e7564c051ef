"""The folder of a SavedModel: its digest, and whether it is complete."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from hubretrain.files import file_sha256
from hubretrain.modules.onnx import is_network

METADATA_FILE = "module.json"
_NAMES = ("saved_model.pb", "saved_model.pbtxt")
_SHARD = re.compile(r"variables\.data-\d{5}-of-(\d{5})")


_IMPORT = "compute its features with its own library and take them in by `hubretrain cache import`"
_EXPORT = (
    "write its network by `keras.models.load_model(FILE).save(FILE.keras)` and name that file, or "
    "name keras:NAME?weights=FILE for weights of Keras Applications"
)
_ONNX = "export its network to ONNX or a SavedModel and name that"
_FILES = {  # ending of a file that is no module: what it is, and what to do
    (".h5", ".hdf5"): ("a Keras file", _EXPORT),
    (".tflite",): (
        "a LiteRT file, made for inference alone",
        f"name the folder of the SavedModel that it was made from, or {_IMPORT}",
    ),
    (".safetensors", ".pth", ".pt", ".pt2", ".ckpt", ".bin", ".msgpack", ".pkl", ".gguf"): (
        "a file of weights without a network",
        f"{_IMPORT}, or {_ONNX}",
    ),
    (".engine", ".plan", ".trt", ".mlmodel", ".mlpackage", ".xml", ".param", ".dlc", ".mar"): (
        "a network of another runtime, made for inference alone",
        f"{_IMPORT}, or {_ONNX}",
    ),
    (".npy", ".npz", ".parquet"): (
        "a file of numbers",
        "take features in by `hubretrain cache import`",
    ),
    (".pb", ".pbtxt"): ("one file of a module", "name the folder of its SavedModel"),
}
_MODULES = (".onnx", ".keras", ".tar.gz", ".tgz", ".tar")
_POINTER = b"version https://git-lfs.github.com/spec/"


def not_a_module(name: str) -> str:
    """Return why what a name means is no module, and what to do; empty where it may be one.

    Args:
        name: A path or URL.
    """
    stem = name.split("?")[0]
    path, is_folder = stem.lower(), Path(name).is_dir()
    if pointer := _pointer(Path(stem)):
        return (
            f"{pointer} is a pointer of Git LFS, not the file itself; run `git lfs pull` in its "
            "repository, or download the file."
        )
    for endings, (what, remedy) in _FILES.items():
        if path.rstrip("/").endswith(endings) and not (is_folder and not missing(Path(name))):
            return f"{name} is {what}; {remedy}."
    if "/" in stem and Path(stem).is_file() and not path.endswith(_MODULES):  # else a name
        return (
            f"{name} is a file of no kind that is known; expected the folder of a SavedModel, an "
            f"archive of one, a .keras or an .onnx file: {_IMPORT}, or {_ONNX}."
        )
    return ""


def _pointer(path: Path) -> Path | None:
    """Return the file, of a module's or it alone, that Git LFS has left as a pointer."""
    files = [path, *(path / name for name in _NAMES), *(path / "variables").glob("variables.*")]
    return next((f for f in files if f.is_file() and _begins_with(f, _POINTER)), None)


def _begins_with(path: Path, text: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(text)) == text
    except OSError:  # which reading it as a module reports
        return False


def missing(folder: Path) -> str:
    """Return what a module's folder lacks, in words; empty where it is complete.

    Systems tidy temporary folders file by file, so a library's cache there may lack any part.
    """
    if not folder.is_dir():
        return "does not exist"
    if is_network(folder):
        return ""
    if not any((folder / name).is_file() for name in _NAMES):
        return "holds no saved_model.pb"
    # Files alone: TensorFlow waits without end for a pipe.
    shards = [p.name for p in (folder / "variables").glob("variables.data-*") if p.is_file()]
    has_index = (folder / "variables" / "variables.index").is_file()
    if (folder / "variables").is_dir() and (shards or has_index):
        n_expected = max((int(m[1]) for s in shards if (m := _SHARD.fullmatch(s))), default=1)
        if not has_index:
            return "holds no variables/variables.index"
        if len(shards) < n_expected:
            return f"holds {len(shards)} of {n_expected} variables/variables.data files"
    return ""


def sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file but `module.json`, by its path within the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != METADATA_FILE)
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}


def tree_sha256(folder: Path) -> str:
    """Return the SHA-256 of a SavedModel: of each file's relative path and bytes, by path.

    `fingerprint.pb` is left out, because it holds a random number that is new at each save.
    """
    digest = hashlib.sha256()
    excluded = {METADATA_FILE, "fingerprint.pb"}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in excluded):
        relative = path.relative_to(folder).as_posix()
        digest.update(f"{relative}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()
