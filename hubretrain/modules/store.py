"""The module store: a folder of modules with their metadata, and how a name gets into it.

    <store>/<name>/saved_model.pb, variables/, assets/; or model.onnx, input.json
    <store>/<name>/module.json      name, handle, source, SHA-256 of the tree, image size, range,
                                    features, costs, files with their sizes, versions
    <store>/probed/<sha256>.json    the same metadata of a module that stays in the user's folder
    <store>/trusted/<sha256>.json   handle of a module from outside the catalogue that is trusted

The store is `$HUBRETRAIN_STORE`, or `hubretrain/modules` in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Required, TypedDict

import platformdirs

from hubretrain._version import __version__
from hubretrain.errors import ModuleError, RunError
from hubretrain.files import StrPath, conforming, file_sha256, read_record, write_record
from hubretrain.modules import keras_handles, sources
from hubretrain.modules.archive import SUFFIXES
from hubretrain.modules.builders import KERAS_SUFFIX, ImportOptions, folder_of, import_into
from hubretrain.modules.catalogue import (
    KAGGLE,
    HubModule,
    described,
    find,
    license_of,
    lite_package,
    read_catalogue,
    unknown,
)
from hubretrain.modules.layers import LayerPoint
from hubretrain.modules.network import is_offline
from hubretrain.modules.onnx import (
    MODEL,
    is_network,
    is_onnx,
    license_in,
    parse_handle,
    source_sha256,
)
from hubretrain.modules.saved_model import METADATA_FILE, missing, not_a_module, sizes, tree_sha256
from hubretrain.runs import ModuleRecord

_SECONDS_PER_DAY = 86_400.0
_NAMES_SHOWN = 5  # of modules that an error proposes
_LIBRARIES = ("tensorflow", "tensorflow-hub", "tf-keras")
OWN_DIGEST = "record_sha256"  # of a record itself; `sha256` in it is the module's
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredModule:
    """A module on this machine: a folder with a SavedModel or ONNX network, and its metadata.

    Attributes:
        name: Short name; also the name of its bottleneck file.
        handle: Where it came from: a handle, or the folder itself.
        folder: Folder of its files.
        sha256: SHA-256 of these files.
        image_size: Height and width of its input, pixels; 0 until it has been probed.
        n_features: Length of its bottleneck; 0 until it has been probed.
        value_range: Least and largest input value.
        n_parameters: Numbers in its variables; None until it has been probed.
        gflops: 10^9 floating-point operations per image, a multiplication and an addition being
            two; None until it has been probed, or where they cannot be counted.
        layer_points: Inner layers whose features can be cached, shallow to deep; () where there are
            none, None until it has been probed.
        to_remember: Whether the result of a probe is kept. False where image size or range were
            chosen by the caller, since the next caller may choose others.
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
    layer_points: tuple[LayerPoint, ...] | None = None
    to_remember: bool = True

    @property
    def license(self) -> str:
        """SPDX identifier of its weights' licence, from the catalogue or timm; empty if unknown."""
        return license_of(self.handle) or license_in(self.folder)

    @property
    def probed(self) -> bool:
        """Whether it was loaded once and found to be a feature vector module."""
        measured = (self.n_parameters, self.layer_points)
        return self.n_features > 0 and None not in measured

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX network, which TensorFlow does not run."""
        return is_network(self.folder)


def store_folder() -> Path:
    """Return the folder of the store: `$HUBRETRAIN_STORE`, or one in the user's cache folder."""
    if folder := os.environ.get("HUBRETRAIN_STORE"):
        return Path(folder)
    return platformdirs.user_cache_path("hubretrain", appauthor=False) / "modules"


def find_stored(
    name: str,
    *,
    image_size: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> StoredModule | None:
    """Return the module that the store holds under this name, or None where it is incomplete.

    Arguments as of `resolve`.
    """
    module = _from_store(name)
    return None if module is None else _with_input(module, image_size, value_range)


def stored_modules() -> list[StoredModule]:
    """Return the modules that the store holds, by name; those that are damaged are logged."""
    modules = []
    for file in sorted(store_folder().glob(f"*/{METADATA_FILE}")):
        module = _from_store(file.parent.name)
        if module is None:
            _log.warning("%s is damaged or incomplete: fetch the module again", file.parent)
        else:
            modules.append(module)
    return modules


def used_folders() -> list[StoredModule]:
    """Return the modules that were used from folders outside of the store and are there, by path.

    As they were when they were last probed; nothing is read but whether a folder holds a module.
    """
    used = {}
    for file in sorted((store_folder() / "probed").glob("*.json")):
        values = _read_metadata(file)
        folder = Path(values.get("handle", ""))
        if values and (folder / "saved_model.pb").is_file():
            module = StoredModule(values["name"], str(folder), folder, values["sha256"])
            used[str(folder)] = replace(module, **_measured(values))
    return [used[path] for path in sorted(used)]


def current_digest(name: str, handle: str) -> str | None:
    """Return the SHA-256 that a module has now, None if it is not here; never download it."""
    folder = Path(handle)
    if "://" not in handle and (folder / "saved_model.pb").is_file():
        return tree_sha256(folder)
    module = _from_store(name)
    return module.sha256 if module is not None else None


def resolve(
    name: StrPath,
    *,
    image_size: int | None = None,
    value_range: tuple[float, float] | None = None,
    trust: sources.Trust = True,
) -> StoredModule:
    """Find a module by name, handle or folder, and download it if necessary.

    Args:
        name: A name or alias of the catalogue; a handle (`https://tfhub.dev/...`,
            `kaggle:...`, `keras:...`); a folder with a SavedModel, or an archive of one; an ONNX
            file or its URL, with options (`hubretrain.modules.onnx.handles`); the name that the
            store has a module under.
        image_size: Height and width of its input, pixels, where the module does not fix them.
        value_range: Least and largest value of its input, where that is not [0, 1].
        trust: Whether to take what is downloaded from outside the catalogue, or a function that is
            asked with a sentence, once per digest. A program that names a handle has decided; the
            command line asks.

    Raises:
        UntrustedModuleError: It was downloaded from outside the catalogue, and is not trusted.
        ModuleError: It is unknown, could not be downloaded, its folder holds no complete
            SavedModel, or `value_range` differs from the documented one.

    Examples:
        >>> from hubretrain import resolve
        >>> module = resolve("modules/small")
        >>> module.name, len(module.sha256)
        ('small', 64)
    """
    name = str(name)
    if why := not_a_module(name):
        raise ModuleError(why)
    entry = find(name) if _is_folder(name) else described(name)
    if entry is not None and entry.source == "keras" and image_size is not None:
        keras = keras_handles.parse(entry.own_handle)  # these are built for one size
        entry = described(str(replace(keras, image_size=image_size)))
    if entry is not None and entry.source == "onnx" and (image_size or value_range):
        file = parse_handle(entry.own_handle)
        size, values = image_size or file.image_size, value_range or file.value_range
        entry = described(str(replace(file, image_size=size, value_range=values)))
    if entry is not None:
        _refuse_classifier(entry)
        _check_range(entry, value_range)
        module = _stored_as(entry) or _download(entry, trust)
    elif _is_folder(name):
        module = _from_folder(Path(name))
    elif stored := _from_store(name):
        if tree_sha256(stored.folder) != stored.sha256:
            raise ModuleError(
                f"{stored.folder} is damaged: its files are not those that were stored; continue "
                f"with its source, {stored.handle}."
            )
        module = stored
    else:
        raise unknown(name)
    return _with_input(module, image_size, value_range)


def _with_input(
    module: StoredModule, image_size: int | None, value_range: tuple[float, float] | None
) -> StoredModule:
    """Return the module with the image size and range that the caller chose."""
    if image_size is not None and image_size != module.image_size:
        fixes_none = module.image_size == 0  # then the chosen size is as good as its own
        module = replace(
            module, image_size=image_size, n_features=0, layer_points=None, to_remember=fixes_none
        )
    if value_range is not None and value_range != module.value_range:
        module = replace(module, value_range=value_range, to_remember=False)
    return module


def _is_folder(name: str) -> bool:
    """Return whether a name means a folder, existing or not, not a handle, archive or module."""
    if Path(name).is_dir():
        return True
    if is_onnx(name):
        return False
    return (
        os.sep in name
        and ":" not in name.split(os.sep)[0]
        and not name.endswith((*SUFFIXES, KERAS_SUFFIX))
    )


def remember(module: StoredModule) -> None:
    """Keep the result of a probe, so that the next command need not load the module."""
    if not module.to_remember:
        return
    values = _metadata_of(module)
    if module.folder.parent == store_folder():
        path = module.folder / METADATA_FILE
        write_record(path, {**_read_metadata(path), **values}, OWN_DIGEST)
    else:
        path = store_folder() / "probed" / f"{module.sha256}.json"
        write_record(path, values, OWN_DIGEST)


def _from_folder(folder: Path) -> StoredModule:
    if problem := missing(folder):
        raise ModuleError(
            f"{folder} {problem}; expected a folder with a TF2 SavedModel that follows TF-Hub's "
            "feature vector convention."
        )
    sha256 = tree_sha256(folder)
    if folder.resolve().parent != store_folder().resolve():
        sources.warn_once(store_folder(), folder, sha256)
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", folder.resolve().name)
    module = StoredModule(name, os.path.abspath(folder), folder, sha256)
    probed = _read_metadata(store_folder() / "probed" / f"{sha256}.json")
    return replace(module, **_measured(probed or _read_metadata(folder / METADATA_FILE)))


def _from_store(name: str) -> StoredModule | None:
    """Return what the store holds under a name, if no file is missing or truncated."""
    folder = store_folder() / name
    stored = _read_metadata(folder / METADATA_FILE)
    if not stored or missing(folder) or stored.get("files", sizes(folder)) != sizes(folder):
        return None
    module = StoredModule(name, stored["handle"], folder, stored["sha256"])
    return replace(module, **_measured(stored))


def _stored_as(entry: HubModule) -> StoredModule | None:
    """Return the stored module if it is this one, byte by byte.

    It is if it came by one of the entry's handles; one that was made from a file (weights, an
    archive) also has to be of that file as it is now, unless the file is gone.
    """
    module = _from_store(entry.name)
    try:
        if module is None or tree_sha256(module.folder) != module.sha256:
            return None
    except FileNotFoundError:  # another process replaces it
        return None
    if entry.file is not None and entry.file.is_file():
        made_from = _read_metadata(module.folder / METADATA_FILE).get("file_sha256")
        if made_from != _file_digest(entry):
            return None
        return module if entry.source != "onnx" or _same_options(entry, module) else None
    return module if module.handle in entry.handles or _same_options(entry, module) else None


def _same_options(entry: HubModule, module: StoredModule) -> bool:
    """Return whether a stored module of an ONNX file is of the options given, or none are given."""
    if entry.source != "onnx" or not is_onnx(module.handle):
        return False
    wanted, stored = parse_handle(entry.own_handle), parse_handle(module.handle)
    return wanted == stored or (wanted.is_bare and wanted.source == stored.source)


def _file_digest(entry: HubModule) -> str | None:
    """Return the digest of the file that a module is made from, None where there is none."""
    if entry.file is None or not entry.file.is_file():
        return None
    return source_sha256(entry.file) if entry.source == "onnx" else file_sha256(entry.file)


def _refuse_classifier(entry: HubModule) -> None:
    for handle in entry.handles:
        if re.search(r"/classification(/\d+)?/?$|-classification(/\d+)?/?$", handle):
            feature_vector = handle.replace("/classification", "/feature_vector").replace(
                "-classification", "-feature-vector"
            )
            raise ModuleError(
                f"{handle} is a classifier; expected a feature vector module, perhaps "
                f"{feature_vector}"
            )


def _check_range(entry: HubModule, value_range: tuple[float, float] | None) -> None:
    """Raise where the chosen range is not the documented one, or neither is known."""
    if entry.value_range is None:
        if value_range is None and find(entry.name):
            raise ModuleError(
                f"{entry.name} does not document the range of its input; set `value_range`, such "
                "as 0 1 or -1 1."
            )
    elif value_range not in (None, entry.value_range):
        (low, high), (chosen_low, chosen_high) = entry.value_range, value_range
        raise ModuleError(
            f"{entry.name} takes values in [{low:g}, {high:g}], not in "
            f"[{chosen_low:g}, {chosen_high:g}]; leave out `value_range`."
        )


def _metadata_of(module: StoredModule) -> dict[str, Any]:
    """Return what `module.json` holds of a module's attributes."""
    values = asdict(module)
    del values["folder"], values["to_remember"]
    return {**values, "layers_sought": module.layer_points is not None}


class _Metadata(TypedDict, total=False):
    """What a `module.json` holds of what is read again."""

    name: Required[str]
    handle: Required[str]
    sha256: Required[str]
    image_size: int
    n_features: int
    value_range: tuple[float, float]
    n_parameters: int | None
    gflops: float | None
    layer_points: list[LayerPoint] | None
    layers_sought: bool
    files: dict[str, int]
    file_sha256: str | None


def _read_metadata(path: Path) -> dict[str, Any]:
    """Return the contents of a `module.json`; {} where it is missing or damaged."""
    try:
        values = read_record(path, OWN_DIGEST)
        conforming(values, _Metadata)
    except (OSError, ValueError):
        return {}
    return values


def _measured(values: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of `StoredModule` that a probe measures."""
    names = ("image_size", "n_features", "value_range", "n_parameters", "gflops")
    measured: dict[str, Any] = {name: values[name] for name in names if name in values}
    if "value_range" in measured:
        measured["value_range"] = tuple(measured["value_range"])
    points = values.get("layer_points")
    if not points and not values.get("layers_sought") and MODEL in values.get("files", ()):
        points = None  # of ONNX modules they were not sought once
    if points is not None:
        measured["layer_points"] = tuple(conforming(points, list[LayerPoint]))
    return measured


def _download(entry: HubModule, trust: sources.Trust) -> StoredModule:
    """Put a module into the store from the first source that gives it.

    Raises:
        UntrustedModuleError: See `resolve`.
        ModuleError: No source gives it, or the store cannot be written.
    """
    store = store_folder()
    if (store / entry.name / METADATA_FILE).is_file():
        _log.warning("the stored %s is damaged or another module; it is replaced", entry.name)
    failures: list[str] = []
    for handle, fetch in sources.of(entry):
        with _aside(store, entry.name) as aside:
            is_remote = "://" in handle or handle.startswith(KAGGLE)
            if not (is_remote and is_offline()):  # then it is looked for in caches alone
                verb = "downloading" if is_remote else "making"
                _log.info("%s %s from %s", verb, entry.name, handle)
            try:
                module = _fetch_into(store, aside, entry, handle, fetch, trust)
            except sources.UntrustedModuleError:
                raise
            except ModuleError as error:
                if entry.source == "onnx":  # there is no other source
                    raise
                failures.append(f"{handle} ({str(error).removesuffix('.')})")
                continue
            except OSError as error:
                if (stored := _stored_as(entry)) is not None:  # another process was faster
                    return stored
                raise ModuleError(
                    f"{store}/ cannot be written ({_reason(error)}); free disk space, or set "
                    "HUBRETRAIN_STORE to another folder."
                ) from error
        if failures:
            _log.info(
                "%s comes from %s; it could not be downloaded from %s",
                entry.name,
                handle,
                "; ".join(failures),
            )
        return module
    raise ModuleError(
        f"{entry.name} could not be downloaded; tried {'; '.join(failures)}. "
        f"Continue with {_names_here()}a folder that holds its SavedModel, or "
        "'keras:NAME?weights=FILE.h5'; `hubretrain modules` lists all names."
    )


def import_module(source: str, name: str, options: ImportOptions | None = None) -> StoredModule:
    """Make a module of another library's model, and store it under a name.

    Args:
        source: `keras-hub:PRESET` or `timm:MODEL`.
        name: Its name, by which it is resolved from then on; `_random` is added to that of a
            control with random weights, by which the leaderboard recognises it.
        options: How.

    Raises:
        ModuleError: The name is no file name or means another module, or see `import_into`.
    """
    options = options or ImportOptions()
    if folder := folder_of(source):
        source = f"{source.partition(':')[0]}:{folder}"
    if options.random_weights and not name.endswith("_random"):
        name += "_random"
    stored = _from_store(name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or find(name):
        raise ModuleError(
            f"{name!r} cannot be the name of an imported module; expected letters, digits, dots, "
            "hyphens and underscores, and no name of the catalogue."
        )
    if stored is not None and stored.handle != source:
        raise ModuleError(
            f"{name} is stored already, from {stored.handle}; choose another name, or delete "
            f"{stored.folder}."
        )
    store = store_folder()
    kind = "onnx" if source.startswith("timm:") else "imported"
    entry = HubModule(name, (), kind, 0, 0, (0.0, 1.0), "", "", own_handle=source)
    with _aside(store, name) as aside:

        def fetch(folder: Path) -> None:
            import_into(source, folder, options, store / "environments")

        return _fetch_into(store, aside, entry, source, fetch, trust=True)


def installed_modules() -> list[HubModule]:
    """Return the modules of the catalogue whose weights are in a package that is installed."""
    return [
        module
        for module in read_catalogue()
        if module.source == "lite"
        and importlib.util.find_spec(lite_package(module.own_handle.partition(":")[2]))
    ]


def _names_here() -> str:
    """Return the modules that need no network, to be continued with an alternative."""
    stored = sorted(path.parent.name for path in store_folder().glob(f"*/{METADATA_FILE}"))
    installed = [module.name for module in installed_modules()]
    names = list(dict.fromkeys([*stored, *installed]))[:_NAMES_SHOWN]
    return f"{', '.join(names)} (on this machine), " if names else ""


def _fetch_into(
    store: Path,
    aside: Path,
    entry: HubModule,
    handle: str,
    fetch: Callable[[Path], None],
    trust: sources.Trust,
) -> StoredModule:
    """Fetch a module into a folder aside, add its metadata, and move it into the store."""
    # Taken before the file is read, so that a file that changes meanwhile is not mistaken.
    file_digest = _file_digest(entry)
    new = aside / "module"
    fetch(new)
    size, value_range = entry.image_size, entry.value_range or (0.0, 1.0)
    if entry.source == "onnx":
        from hubretrain.modules.onnx import read_description  # imports onnx

        image = read_description(new).image
        size, value_range = image.image_size, image.value_range
    module = StoredModule(
        *(entry.name, handle, store / entry.name, tree_sha256(new), size), value_range=value_range
    )
    sources.check_trusted(store, entry, handle, module.sha256, trust)
    libraries = ("onnx", "onnxruntime") if entry.source == "onnx" else _LIBRARIES
    values = {
        **_metadata_of(module),
        "source": handle.partition(":")[0] if entry.file is None else entry.source,
        "files": sizes(new),
        "versions": {"hubretrain": __version__} | {n: metadata.version(n) for n in libraries},
    }
    if file_digest is not None:
        values["file_sha256"] = file_digest
    write_record(new / METADATA_FILE, values, OWN_DIGEST)
    there = _stored_as(entry)
    if there is not None and (there.handle, there.sha256) == (handle, module.sha256):
        return there  # another process was faster, and may be reading it
    shutil.rmtree(module.folder, ignore_errors=True)
    os.replace(new, module.folder)
    return module


@contextlib.contextmanager
def _aside(store: Path, name: str) -> Iterator[Path]:
    """Yield a folder in the store to fetch into; it is removed afterwards.

    Leftovers of fetches that were killed a day ago or longer are removed first.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        for folder in store.glob(f".{glob.escape(name)}.*"):
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > _SECONDS_PER_DAY:
                    shutil.rmtree(folder)
        aside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=store))
    except OSError as error:
        raise ModuleError(
            f"{store}/ cannot be written ({error.strerror}); fix permissions, or set "
            "HUBRETRAIN_STORE to another folder."
        ) from error
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _reason(error: OSError) -> str:
    if isinstance(error, shutil.Error):  # its first argument is a list: (source, target, reason)
        return str(error.args[0][0][-1])
    return error.strerror or str(error)


def restore_module(name: str, record: ModuleRecord) -> StoredModule:
    """Return a module of a run, found again and checked: in the store, else by its handle.

    Args:
        name: Name of the module in the run.
        record: What the module was when its bottlenecks were computed.

    Raises:
        RunError: It is another module by now.
        ModuleError: It cannot be found any more, or never was one: its features were imported.
    """
    if source := record.attributes.get("imported_from"):
        raise ModuleError(
            f"{name} is features that were imported from {source}, without a network that computes "
            "them: they are ranked, but cannot be exported, fine-tuned or explained; name another "
            "module."
        )
    size, value_range, sha256 = record.image_size, record.value_range, record.module_sha256
    module = find_stored(name, image_size=size, value_range=value_range)
    if module is None or not module.sha256 == sha256 == tree_sha256(module.folder):
        module = resolve(record.handle, image_size=size, value_range=value_range, trust=False)
    if module.sha256 != sha256:
        raise RunError(
            f"{name} has changed since its bottlenecks were computed (sha256 "
            f"{sha256[:12]} then, {module.sha256[:12]} now); cache and fit again."
        )
    return module
