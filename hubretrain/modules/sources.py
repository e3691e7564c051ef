"""Where modules come from: each source puts one SavedModel into a folder, or says why not."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from hubretrain.errors import ModuleError
from hubretrain.modules.archive import unpack_module
from hubretrain.modules.builders import build_module
from hubretrain.modules.catalogue import KAGGLE, HubModule
from hubretrain.modules.network import network, reason_of, shown_progress
from hubretrain.modules.saved_model import missing

Fetch = Callable[[Path], None]


def of(module: HubModule) -> Iterator[tuple[str, Fetch]]:
    """The sources of a module in the order to try: the handle there, and its fetch."""
    for handle in module.handles:
        if module.source == "archive":
            yield handle, functools.partial(unpack_module, Path(handle))
        elif handle == module.own_handle:
            yield handle, functools.partial(build_module, handle)
        elif handle.startswith(KAGGLE):
            yield handle, functools.partial(_kaggle, handle.removeprefix(KAGGLE))
        else:
            yield handle, functools.partial(_tensorflow_hub, handle)


def _tensorflow_hub(handle: str, folder: Path) -> None:
    """Fetches a handle through tensorflow_hub, whose own cache is honoured.

    What is in that cache only by half, as after a tidying of temporary files, is fetched anew.
    """
    from hubretrain import tensorflow as tensorflow_door  # noqa: F401  (first, so that it is silent)

    import tensorflow_hub as hub  # isort: skip
    from tensorflow_hub import resolver  # isort: skip

    cache = Path(resolver.tfhub_cache_dir(use_temp=True))

    def fetch(again: bool) -> Path:
        with shown_progress():
            found = Path(hub.resolve(handle))
        if again and found.is_relative_to(cache):
            shutil.rmtree(found)
            found = Path(hub.resolve(handle))
        return found

    _copy_whole(fetch, folder)


def _kaggle(handle: str, folder: Path) -> None:
    """Fetches a handle of Kaggle Models through kagglehub, whose own cache is honoured."""
    if importlib.util.find_spec("kagglehub") is None:
        raise ModuleError("needs kagglehub: pip install 'hubretrain[kaggle]'")

    def fetch(again: bool) -> Path:
        import kagglehub

        return Path(kagglehub.model_download(handle, force_download=again))

    _copy_whole(fetch, folder)


def _copy_whole(fetch: Callable[[bool], Path], folder: Path) -> None:
    """Copies what a library's cache holds; half of a SavedModel is asked for once more."""
    try:
        with network():
            found = fetch(False)
            if missing(found):
                found = fetch(True)
    except Exception as error:  # urllib, requests, tarfile, TensorFlow: each has its own tree
        raise ModuleError(reason_of(error)) from error
    if lacks := missing(found):
        raise ModuleError(f"what is in {found} {lacks}; remove that folder")
    shutil.copytree(found, folder)
