"""`dataset.json`: whose bottlenecks lie beside it, and the options that it was last opened with.

So that labels, columns, groups and exclusions are given once: the commands that share a cache use
what this file holds where an option is not given. Library functions take their arguments only.
Two data sets whose folders have the same name would share a folder of the cache: the second is
refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hubretrain.data.dataset import Folder, ImageDataset, Record, open_dataset
from hubretrain.data.digests import known_sizes
from hubretrain.data.findings import likely_bits
from hubretrain.data.images import MAX_BITS, highest_level
from hubretrain.data.layouts import default_folder, labels_file, suffix_of
from hubretrain.data.options import TableOptions
from hubretrain.errors import DataError, unreadable
from hubretrain.files import read_record, write_record
from hubretrain.storage import is_remote, located, stamp_of

logger = logging.getLogger(__name__)
FILE_NAME = "dataset.json"
_N_SAMPLED = 50
_SUFFIXES = (".png", ".tif", ".tiff", ".pgm", ".ppm", ".pnm")  # of formats with 16 bits
_NAMES = ("labels", *(option.name for option in fields(TableOptions)))


def open_as_before(
    data: Folder | None,
    cache: Path,
    *,
    more_roots: tuple[Path, ...] = (),
    labels: Path | None = None,
    table: TableOptions = TableOptions(),
) -> ImageDataset:
    """Open a data set with the options given, and else with those that it was opened with before.

    What is used from before, and what is another value now, is logged; what is used is remembered,
    with the folder.

    Args:
        data: See `open_dataset`, as all below.
        cache: The cache folder.
        more_roots: More folders; they are not remembered.
        labels: A table of labels.
        table: How it is read.

    Raises:
        DataError: See `open_dataset` and `remembered_options`; or the cache holds another data set
            of the same name.
        WriteError: The options cannot be written.
    """
    root = Path(data) if data is not None else default_folder(Path("data"))
    file = cache / (root.resolve().name or "data") / FILE_NAME
    earlier = remembered_options(root, cache)
    given = _given(labels and labels_file(labels, root), table)
    if given.get("multi_label") is False:  # nothing separates several labels any more
        earlier.pop("label_separator", None)
    for name in given.keys() & earlier.keys():
        if given[name] != earlier[name]:
            logger.info(
                "`%s` is %s now, which is remembered; it was %s.",
                *(name, _shown(given[name]), _shown(earlier[name])),
            )
    if unchanged := {name: value for name, value in earlier.items() if name not in given}:
        logger.info("Options as before, from %s: %s", file, " ".join(option_words(unchanged)))
    options = earlier | given
    dataset = open_dataset(
        root,
        more_roots=more_roots,
        labels=str(options["labels"]) if "labels" in options else None,
        table=TableOptions(**{n: _field(v) for n, v in options.items() if n != "labels"}),
    )
    owner = _owner(file)
    is_of_other = owner not in (None, root.resolve()) and _holds_more(file)
    if is_of_other and not _is_copy(dataset, file.parent):
        raise DataError(
            f"{file.parent}/ holds the data set of {owner}, and {root} is another one of the same "
            "name; choose another `cache` for it, and another `run` folder for its results."
        )
    if "bits" not in options and (bits := _bits_of_sample(dataset)) < MAX_BITS:
        logger.info(
            "Images with 16 bits per channel have levels of %d bits (in a sample): they are read "
            "with `bits=%d`, so that they are not near black. It is remembered.",
            *(bits, bits),
        )
        options = {**options, "bits": bits}
        dataset = replace(dataset, opened_with={**dataset.opened_with, "bits": bits})
    if options != earlier or (owner != root.resolve() and not is_of_other):
        write_record(file, {"folder": str(root.resolve()), **options})
    return dataset


def _owner(file: Path) -> Path | None:
    """Return the folder of the data set whose `dataset.json` this is; None if it is no more."""
    try:
        folder = read_record(file).get("folder")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Path(folder) if isinstance(folder, str) and os.path.isdir(folder) else None


def _holds_more(file: Path) -> bool:
    """Return whether anything is beside `dataset.json`, which a refused command leaves alone."""
    return any(path != file for path in file.parent.iterdir())


def _is_copy(dataset: ImageDataset, folder: Path) -> bool:
    """Return whether half of a sample of images were as large in the folder of a cache's owner."""
    sizes = known_sizes(folder)
    paths = dataset.images["path"].tolist()
    sample = paths[:: max(1, len(paths) // _N_SAMPLED)]
    same = [path in sizes and _size(dataset.root, path) == sizes[path] for path in sample]
    return 2 * sum(same) > len(sample)


def _size(root: Path, path: str) -> int | None:
    try:
        return stamp_of(located(root, path))[0]
    except OSError:
        return None


def _bits_of_sample(dataset: ImageDataset) -> int:
    """Return the bits that 16-bit images use, by a sample; 16 without such images.

    Less than 15 bits alone count: an image may be dark.
    """
    paths = [p for p in dataset.images["path"] if suffix_of(p) in _SUFFIXES and not is_remote(p)]
    highest = -1
    for path in paths[:: max(1, len(paths) // _N_SAMPLED)]:
        with contextlib.suppress(Exception):  # Pillow's parsers raise nearly every type
            highest = max(highest, highest_level(dataset.root, path, dataset.reading.max_pixels))
    bits = likely_bits(highest) if highest >= 0 else MAX_BITS
    return bits if bits < MAX_BITS - 1 else MAX_BITS


def remembered_options(root: Path, cache: Path) -> Record:
    """Return the options of a data set that were remembered; none of another folder's.

    Raises:
        DataError: The file is damaged: without them, groups or exclusions would be forgotten.
    """
    file = cache / (root.resolve().name or "data") / FILE_NAME
    try:
        record = read_record(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise DataError(unreadable(file, error, "remove it and give its options again")) from error
    if record.get("folder") != str(root.resolve()):
        return {}
    return {name: value for name, value in record.items() if name in _NAMES}


def forget_options(root: Path, cache: Path) -> bool:
    """Forget the options of a data set; return whether there were any."""
    file = cache / (root.resolve().name or "data") / FILE_NAME
    options = remembered_options(root, cache)
    if _owner(file) in (None, root.resolve()):
        file.unlink(missing_ok=True)
    return bool(options)


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Return options as sentences name them, such as `group_column=patient`, in backticks."""
    words = []
    for name, value in options.items():
        if value is True:
            words.append(f"`{name}`")
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"`{name}={shlex.quote(str(item))}`" for item in values]
    return words


def _given(labels: Path | None, table: TableOptions) -> Record:
    given: Record = {} if labels is None else {"labels": str(Path(labels).resolve())}
    for option in fields(TableOptions):
        value = getattr(table, option.name)
        if value != option.default:
            given[option.name] = list(value) if isinstance(value, tuple) else value
    return given


def _field(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
