"""The module store: a folder of SavedModels with their facts, and how a name gets into it.

::

    <store>/<name>/saved_model.pb, variables/, assets/
    <store>/<name>/module.json      name, handle, source, sha256 of the tree, image size, range,
                                    features, costs, files with their sizes, versions
    <store>/probed/<sha256>.json    the same facts of a module that stays in the user's folder

The store is `$HUBRETRAIN_STORE`, or `hubretrain/modules` in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from hubretrain._version import __version__
from hubretrain.errors import ModuleError, RunError
from hubretrain.files import file_sha256, write_json
from hubretrain.modules import keras_handles
from hubretrain.modules.archive import SUFFIXES
from hubretrain.modules.catalogue import HubModule, described, find, unknown
from hubretrain.modules.saved_model import FACTS, missing, sizes, tree_sha256
from hubretrain.runs import ModuleRecord

_log = logging.getLogger(__name__)

_A_DAY = 86_400.0


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
    """Where modules are kept: `$HUBRETRAIN_STORE`, or a folder in the user's cache."""
    if chosen := os.environ.get("HUBRETRAIN_STORE"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hubretrain" / "modules"


def find_stored(
    name: str,
    *,
    image_size: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> StoredModule | None:
    """The module that the store holds under this name, whole, or None; the rest as `resolve`."""
    module = _from_store(name)
    return None if module is None else _as_asked(module, image_size, value_range)


def current_digest(name: str, handle: str) -> str | None:
    """The digest that a module has now, or None if it is not here; fetches nothing."""
    folder = Path(handle)
    if "://" not in handle and (folder / "saved_model.pb").is_file():
        return tree_sha256(folder)
    module = _from_store(name)
    return module.sha256 if module is not None else None


def resolve(
    name: str,
    *,
    image_size: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> StoredModule:
    """Finds a module by name, handle or folder, and brings it here if need be.

    Args:
        name: A name or alias of the catalogue; a handle (`https://tfhub.dev/...`,
            `kaggle:...`, `keras:...`); a folder with a SavedModel, or an archive of one.
        image_size: Height and width to use, pixels, where the module does not fix them.
        value_range: The range of its input, where that is not [0, 1].

    Raises:
        ModuleError: It is unknown, cannot be had, its folder holds no whole SavedModel, or
            `value_range` is not what is known of it.
    """
    known = find(name) if _is_folder(name) else described(name)
    if known is not None and known.source == "keras" and image_size is not None:
        keras = keras_handles.parse(known.own_handle)  # these are made for a size
        known = described(str(replace(keras, image_size=image_size)))
    if known is not None:
        _refuse_classifier(known)
        _refuse_range(known, value_range)
        module = _kept(known) or _fetch(known)
    elif _is_folder(name):
        module = _from_folder(Path(name))
    else:
        raise unknown(name)
    return _as_asked(module, image_size, value_range)


def _as_asked(
    module: StoredModule, image_size: int | None, value_range: tuple[float, float] | None
) -> StoredModule:
    if image_size is not None and image_size != module.image_size:
        own = module.image_size == 0  # it fixes none, so that is as good as its own
        module = replace(module, image_size=image_size, n_features=0, to_remember=own)
    if value_range is not None and value_range != module.value_range:
        module = replace(module, value_range=value_range, to_remember=False)
    return module


def _is_folder(name: str) -> bool:
    """Whether a name means a folder, there or not, rather than a handle, archive or module."""
    if Path(name).is_dir():
        return True
    return os.sep in name and ":" not in name.split(os.sep)[0] and not name.endswith(SUFFIXES)


def remember(module: StoredModule) -> None:
    """Keeps what a probe found, so that the next command need not load the module."""
    if not module.to_remember:
        return
    facts = asdict(module)
    facts.pop("to_remember")
    folder = facts.pop("folder")
    if folder.parent == store_folder():
        write_json(folder / FACTS, {**_facts(folder / FACTS), **facts})
    else:
        write_json(store_folder() / "probed" / f"{module.sha256}.json", facts)


def _from_folder(folder: Path) -> StoredModule:
    if lacks := missing(folder):
        raise ModuleError(
            f"{folder} {lacks}; expected a folder with a TF2 SavedModel that follows TF-Hub's "
            "feature vector convention."
        )
    sha256 = tree_sha256(folder)
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", folder.resolve().name)
    module = StoredModule(name, os.path.abspath(folder), folder, sha256)
    facts = _facts(store_folder() / "probed" / f"{sha256}.json") or _facts(folder / FACTS)
    return replace(module, **_measured(facts))


def _from_store(name: str) -> StoredModule | None:
    """What the store holds under a name, if all of its files are there and none is short."""
    folder = store_folder() / name
    facts = _facts(folder / FACTS)
    if not facts or missing(folder) or facts.get("files", sizes(folder)) != sizes(folder):
        return None
    module = StoredModule(name, facts["handle"], folder, facts["sha256"])
    return replace(module, **_measured(facts))


def _kept(known: HubModule) -> StoredModule | None:
    """The stored module, if it is this one: of one of its handles, and of its file as it is."""
    module = _from_store(known.name)
    if module is None:
        return None
    made_of = _facts(module.folder / FACTS).get("file_sha256")
    if known.file is not None and known.file.is_file():
        return module if made_of == file_sha256(known.file) else None
    return module if module.handle in known.handles else None


def _refuse_classifier(known: HubModule) -> None:
    for handle in known.handles:
        if re.search(r"/classification(/\d+)?/?$|-classification(/\d+)?/?$", handle):
            twin = handle.replace("/classification", "/feature_vector").replace(
                "-classification", "-feature-vector"
            )
            raise ModuleError(
                f"{handle} is a classifier; expected a feature vector module, perhaps {twin}"
            )


def _refuse_range(known: HubModule, asked: tuple[float, float] | None) -> None:
    """Raises where the range that is asked for is not the documented one, or neither is given."""
    if known.value_range is None:
        if asked is None and find(known.name):
            raise ModuleError(
                f"{known.name} does not document the range of its input; say which with "
                "--value-range, such as 0 1 or -1 1."
            )
    elif asked not in (None, known.value_range):
        (low, high), (asked_low, asked_high) = known.value_range, asked
        raise ModuleError(
            f"{known.name} takes values in [{low:g}, {high:g}], not in "
            f"[{asked_low:g}, {asked_high:g}]; leave --value-range out."
        )


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
    if (store / known.name / FACTS).is_file():
        _log.warning("the stored %s is damaged or another module; making it anew", known.name)
    for handle, fetch in sources.of(known):
        try:
            store.mkdir(parents=True, exist_ok=True)
            _tidy(store, known.name)
            aside = Path(tempfile.mkdtemp(prefix=f".{known.name}.", dir=store))
        except OSError as error:
            raise ModuleError(
                f"{store}/ cannot be written ({error.strerror}); mend its rights, or set "
                "HUBRETRAIN_STORE to another folder."
            ) from error
        try:
            _log.info("downloading %s from %s", known.name, handle)
            made_of = file_sha256(known.file) if known.file and known.file.is_file() else None
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
            facts = {k: v for k, v in asdict(module).items() if k not in ("folder", "to_remember")}
            facts["source"] = handle.partition(":")[0] if known.file is None else known.source
            facts["files"] = sizes(aside / "module")
            libraries = ("tensorflow", "tensorflow-hub", "tf-keras")
            facts["versions"] = {"hubretrain": __version__} | {
                library: metadata.version(library) for library in libraries
            }
            if made_of is not None:
                facts["file_sha256"] = made_of
            write_json(aside / "module" / FACTS, facts)
            shutil.rmtree(module.folder, ignore_errors=True)
            os.replace(aside / "module", module.folder)
            if tried:
                _log.info(
                    "%s comes from %s; it could not be downloaded from %s",
                    known.name,
                    handle,
                    "; ".join(tried),
                )
            return module
        except ModuleError as error:
            tried.append(f"{handle} ({str(error).removesuffix('.')})")
        except OSError as error:  # of shutil, too, whose errors are lists
            if (quicker := _kept(known)) is not None:  # another process brought it
                return quicker
            raise ModuleError(
                f"{store}/ cannot be written ({_reason(error)}); make room there, or set "
                "HUBRETRAIN_STORE to another folder."
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    raise ModuleError(
        f"{known.name} cannot be had here; tried {'; '.join(tried)}. Go on with a folder that "
        "holds its SavedModel, or with another name: hubretrain modules lists them."
    )


def _reason(error: OSError) -> str:
    if isinstance(error, shutil.Error):
        return str(error.args[0][0][-1])
    return error.strerror or str(error)


def _tidy(store: Path, name: str) -> None:
    """Removes what fetches of a module left that were killed; none takes a day."""
    for folder in store.glob(f".{glob.escape(name)}.*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _A_DAY:
                shutil.rmtree(folder)


def restore_module(name: str, record: ModuleRecord) -> StoredModule:
    """Return a module of a run, found again and checked: in the store, else by its handle.

    Args:
        name: Name of the module in the run.
        record: What the module was when its bottlenecks were computed.

    Raises:
        RunError: It is another module by now.
        ModuleError: It cannot be found any more.
    """
    size, value_range, sha256 = record.image_size, record.value_range, record.module_sha256
    module = find_stored(name, image_size=size, value_range=value_range)
    if module is None or module.sha256 != sha256:
        module = resolve(record.handle, image_size=size, value_range=value_range)
    if module.sha256 != sha256:
        raise RunError(
            f"{name} is not what it was when its bottlenecks were computed (sha256 "
            f"{sha256[:12]} then, {module.sha256[:12]} now); cache and fit again."
        )
    return module
