"""The module store: a folder of SavedModels with their facts, and how a name gets into it.

::

    <store>/<name>/saved_model.pb, variables/, assets/
    <store>/<name>/module.json      name, handle, sha256 of the tree, image size, range, features
    <store>/probed/<sha256>.json    the same facts of a module that stays in the user's folder

The store is ``$HUBRETRAIN_STORE``, or ``hubretrain/modules`` in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hubretrain.errors import ModuleError
from hubretrain.files import write_json
from hubretrain.modules.catalogue import HubModule, find, unknown

_FACTS = "module.json"


@dataclass(frozen=True)
class StoredModule:
    """A module that is here: a folder with a SavedModel, and its facts.

    Attributes:
        name: Short name; also the name of its bottleneck file.
        handle: Where it came from: a handle, or the folder itself.
        folder: The SavedModel.
        sha256: Digest of the SavedModel's files.
        image_size: Height and width of its input, pixels; 0 until it was probed.
        n_features: Length of its bottleneck; 0 until it was probed.
        value_range: Least and largest input value.
        n_parameters: Numbers in its variables; None until it was probed.
        gflops: 10^9 floating-point operations an image, a multiplication and an addition being
            two; None until it was probed, or where they cannot be counted.
        to_remember: Whether what a probe finds is the module's own, not what was asked for once.
    """

    name: str
    handle: str
    folder: Path
    sha256: str
    image_size: int = 0
    n_features: int = 0
    value_range: tuple[float, float] = (0.0, 1.0)
    n_parameters: int | None = None
    gflops: float | None = None
    to_remember: bool = True

    @property
    def probed(self) -> bool:
        """Whether it was loaded once and found to be a feature vector module."""
        return self.n_features > 0 and self.n_parameters is not None


def store_folder() -> Path:
    """Where modules are kept: ``$HUBRETRAIN_STORE``, or a folder in the user's cache."""
    if chosen := os.environ.get("HUBRETRAIN_STORE"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hubretrain" / "modules"


def is_stored(name: str) -> bool:
    """Whether the store holds this module."""
    return (store_folder() / name / _FACTS).is_file()


def present_digest(name: str, handle: str) -> str | None:
    """The digest that a module has now, or None if it is not here; fetches nothing."""
    folder = Path(handle)
    if "://" not in handle and (folder / "saved_model.pb").is_file():
        return tree_sha256(folder)
    stored = _from_store(name)
    return stored.sha256 if stored is not None else None


def resolve(
    name: str,
    *,
    image_size: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> StoredModule:
    """Finds a module by name, handle or folder, and brings it here if need be.

    Args:
        name: A name or alias of the catalogue, a handle, or a folder with a SavedModel.
        image_size: Height and width to use, pixels, where the module does not fix them.
        value_range: The range of its input, where that is not [0, 1].

    Raises:
        ModuleError: It is unknown, cannot be had, or its folder holds no SavedModel.
    """
    known = find(name)
    if known is None and (os.sep in name or Path(name).exists()) and "://" not in name:
        module = _from_folder(Path(name))
    elif known is not None:
        module = _from_store(known.name) or _fetch(known)
    elif "://" in name:
        short = _name_of_handle(name)
        module = _from_store(short) or _fetch(
            HubModule(short, (), "tfhub", 0, 0, None, name, "", "")
        )
    else:
        raise unknown(name)
    if image_size is not None and image_size != module.image_size:
        own = module.image_size == 0  # it fixes none, so that is as good as its own
        module = replace(module, image_size=image_size, n_features=0, to_remember=own)
    if value_range is not None and value_range != module.value_range:
        module = replace(module, value_range=value_range, to_remember=False)
    return module


def remember(module: StoredModule) -> None:
    """Keeps what a probe found, so that the next command need not load the module."""
    if not module.to_remember:
        return
    facts = asdict(module)
    facts.pop("to_remember")
    folder = facts.pop("folder")
    if folder.parent == store_folder():
        write_json(folder / _FACTS, facts)
    else:
        write_json(store_folder() / "probed" / f"{module.sha256}.json", facts)


def tree_sha256(folder: Path) -> str:
    """Digest of a SavedModel: of each file's relative path and bytes, in order of path.

    Without ``fingerprint.pb``, which holds a random number that is new at each save.
    """
    digest = hashlib.sha256()
    left_out = {_FACTS, "fingerprint.pb"}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in left_out):
        relative = path.relative_to(folder).as_posix()
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{relative}\0{content}\n".encode())
    return digest.hexdigest()


def _from_folder(folder: Path) -> StoredModule:
    if not (folder / "saved_model.pb").is_file() and not (folder / "saved_model.pbtxt").is_file():
        what = "holds no saved_model.pb" if folder.is_dir() else "does not exist"
        raise ModuleError(
            f"{folder} {what}; expected a folder with a TF2 SavedModel that follows TF-Hub's "
            "feature vector convention."
        )
    sha256 = tree_sha256(folder)
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", folder.resolve().name)
    module = StoredModule(name, str(folder), folder, sha256)
    facts = _facts(store_folder() / "probed" / f"{sha256}.json") or _facts(folder / _FACTS)
    return replace(module, **_measured(facts))


def _from_store(name: str) -> StoredModule | None:
    folder = store_folder() / name
    facts = _facts(folder / _FACTS)
    if not facts or not (folder / "saved_model.pb").is_file():
        return None
    module = StoredModule(name, facts["handle"], folder, facts["sha256"])
    return replace(module, **_measured(facts))


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _measured(facts: dict[str, Any]) -> dict[str, Any]:
    names = ("image_size", "n_features", "value_range", "n_parameters", "gflops")
    found: dict[str, Any] = {name: facts[name] for name in names if name in facts}
    if "value_range" in found:
        found["value_range"] = tuple(found["value_range"])
    return found


def _fetch(known: HubModule) -> StoredModule:
    """Brings a module into the store from the first source that gives it."""
    from hubretrain.modules import sources  # imports TensorFlow

    tried: list[str] = []
    store = store_folder()
    for source, handle, fetch in sources.of(known):
        try:
            store.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=f".{known.name}.", dir=store))
        except OSError as error:
            raise ModuleError(
                f"{store}/ cannot be written ({error.strerror}); mend its rights, or set "
                "HUBRETRAIN_STORE to another folder."
            ) from error
        try:
            fetch(aside / "module")
            module = StoredModule(
                known.name,
                handle,
                store / known.name,
                tree_sha256(aside / "module"),
                known.image_size,
                0,
                known.value_range or (0.0, 1.0),
            )
            facts = {k: v for k, v in asdict(module).items() if k != "folder"}
            write_json(aside / "module" / _FACTS, facts)
            shutil.rmtree(module.folder, ignore_errors=True)  # half deleted: no facts in it
            os.replace(aside / "module", module.folder)
            return module
        except ModuleError as error:
            tried.append(f"{source} ({error})")
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    raise ModuleError(
        f"{known.name} cannot be had here; tried {'; '.join(tried)}. Go on with a folder that "
        "holds its SavedModel, or with another name: hubretrain modules lists them."
    )


def _name_of_handle(handle: str) -> str:
    path = re.sub(r"^[a-z]+://[^/]*/", "", handle.split("?")[0]).strip("/")
    return re.sub(r"[^A-Za-z0-9._-]+", "_", path) or "module"
