"""Sources of modules: each puts one SavedModel into a folder, or raises the reason; their trust."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from hubretrain.errors import ModuleError, WriteError
from hubretrain.files import write_json
from hubretrain.modules.archive import unpack_module
from hubretrain.modules.builders import build_module
from hubretrain.modules.catalogue import KAGGLE, HubModule, read_catalogue
from hubretrain.modules.network import (
    is_offline,
    network,
    no_cache_of,
    reason_of,
    shown_progress,
)
from hubretrain.modules.saved_model import missing

Fetch = Callable[[Path], None]
Trust = bool | Callable[[str], bool]
_IS_PROGRAM = "a module is a program, which may read and write files of this machine"
_IS_RUN_NATIVELY = "a file that was made to do harm may attack the library that runs it"
_LOOPBACK = re.compile(r"https?://(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?/")
_log = logging.getLogger(__name__)


class UntrustedModuleError(ModuleError):
    """A module from outside the catalogue that nobody has said to be trusted."""


def of(module: HubModule) -> Iterator[tuple[str, Fetch]]:
    """Yield the sources of a module in the order to try: its handle there, and how to fetch it."""
    for handle in module.handles:
        if module.source == "archive":
            yield handle, functools.partial(unpack_module, Path(handle))
        elif module.source == "onnx":
            yield handle, functools.partial(_onnx, handle)
        elif handle == module.own_handle:
            yield handle, functools.partial(build_module, handle)
        elif handle.startswith(KAGGLE):
            yield handle, functools.partial(_kaggle, handle.removeprefix(KAGGLE))
        else:
            yield handle, functools.partial(_tensorflow_hub, handle)


def _tensorflow_hub(handle: str, folder: Path) -> None:
    """Download a handle through tensorflow_hub, or take it from its cache.

    What is incomplete in that cache, as after a cleanup of temporary files, is downloaded again.
    """
    _refuse_offline(handle)
    from hubretrain import tensorflow as tensorflow_door  # noqa: F401  (before tensorflow_hub)

    import tensorflow_hub as hub  # isort: skip
    from tensorflow_hub import resolver  # isort: skip

    cache = Path(resolver.tfhub_cache_dir(use_temp=True))

    def fetch(download_again: bool) -> Path:
        with shown_progress():
            downloaded = Path(hub.resolve(handle))
        if download_again and downloaded.is_relative_to(cache):
            shutil.rmtree(downloaded)
            downloaded = Path(hub.resolve(handle))
        return downloaded

    _copy_complete(fetch, folder)


def _kaggle(handle: str, folder: Path) -> None:
    """Download a handle of Kaggle Models through kagglehub, or take it from its cache."""
    _refuse_offline(KAGGLE + handle)
    if importlib.util.find_spec("kagglehub") is None:
        raise ModuleError("kagglehub is not installed: pip install 'hubretrain[kaggle]'")

    def fetch(download_again: bool) -> Path:
        import kagglehub

        return Path(kagglehub.model_download(handle, force_download=download_again))

    _copy_complete(fetch, folder)


def _onnx(handle: str, folder: Path) -> None:
    """Copy or download an ONNX file, and add what is to be done around it."""
    from hubretrain.modules.onnx import fetch, parse_handle  # imports onnx

    fetch(parse_handle(handle), folder)


def _refuse_offline(handle: str) -> None:
    if is_offline() and no_cache_of(handle):
        raise ModuleError("the network is not used")


def _copy_complete(fetch: Callable[[bool], Path], folder: Path) -> None:
    """Copy what a library downloaded; an incomplete SavedModel is downloaded once more."""
    try:
        with network():
            downloaded = fetch(False)
            if missing(downloaded):
                downloaded = fetch(True)
    except Exception as error:  # urllib, requests, tarfile, TensorFlow: each has its own tree
        raise ModuleError(reason_of(error)) from error
    if problem := missing(downloaded):
        raise ModuleError(f"the download in {downloaded} {problem}; remove that folder")
    shutil.copytree(downloaded, folder)


def check_trusted(store: Path, module: HubModule, handle: str, sha256: str, trust: Trust) -> None:
    """Ask about a download from outside the catalogue; warn of what is the user's own.

    That is an archive, or a module of a server on this machine.

    Args:
        store: The module store, which remembers the answer.
        module: The module.
        handle: The handle by which it came.
        sha256: Its digest.
        trust: The answer, or a function that is asked with a sentence.

    Raises:
        UntrustedModuleError: It is not trusted.
    """
    is_onnx = module.source == "onnx"
    if is_onnx and ("://" not in handle or _LOOPBACK.match(handle)):
        return  # operators of ONNX read and write no files
    if module.source in ("archive", "keras_file") or _LOOPBACK.match(handle):
        warn_once(store, handle, sha256, remember=False)  # once it is stored, nobody asks
        return
    if (
        module in read_catalogue()
        or module.source in ("keras", "imported")
        or _is_trusted(store, sha256)
    ):
        return
    why = _IS_RUN_NATIVELY if is_onnx else _IS_PROGRAM
    sentence = f"{handle} is not of the catalogue (sha256 {sha256[:12]}), and {why}"
    if not (trust(sentence) if callable(trust) else trust):
        raise UntrustedModuleError(
            f"{sentence}; if you trust it, run `hubretrain modules fetch` with `trust`."
        )
    _remember_trust(store, sha256, handle)


def warn_once(store: Path, path: Path | str, sha256: str, *, remember: bool = True) -> None:
    """Say once per digest what a module of the user's own can do."""
    if not _is_trusted(store, sha256):
        _log.warning("%s: %s; use those that you trust", path, _IS_PROGRAM)
        if remember:
            _remember_trust(store, sha256, str(path))


def _is_trusted(store: Path, sha256: str) -> bool:
    try:
        return (store / "trusted" / f"{sha256}.json").is_file()
    except OSError:  # a store that may not be read is another sentence, where it is needed
        return False


def _remember_trust(store: Path, sha256: str, handle: str) -> None:
    with contextlib.suppress(WriteError):  # then it is asked again
        write_json(store / "trusted" / f"{sha256}.json", {"handle": handle})
