"""`dataset.json`: the options that a data set was last opened with, beside its bottlenecks.

So that labels, columns, groups and exclusions are given once: the commands that share a cache use
what this file holds where an option is not given. Library functions take their arguments only.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hubretrain.data.dataset import Folder, ImageDataset, Record, open_dataset
from hubretrain.data.findings import likely_bits
from hubretrain.data.images import MAX_BITS, highest_level
from hubretrain.data.layouts import default_folder, suffix_of
from hubretrain.data.options import TableOptions
from hubretrain.errors import DataError, unreadable
from hubretrain.files import read_record, write_record
from hubretrain.storage import is_remote

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

    What is used from before, and what is another value now, is logged; what is used is remembered.

    Args:
        data: See `open_dataset`, as all below.
        cache: The cache folder.
        more_roots: More folders; they are not remembered.
        labels: A table of labels.
        table: How it is read.

    Raises:
        DataError: See `open_dataset` and `remembered_options`.
        WriteError: The options cannot be written.
    """
    root = Path(data) if data is not None else default_folder(Path("data"))
    file = cache / (root.resolve().name or "data") / FILE_NAME
    earlier = remembered_options(root, cache)
    given = _given(labels, table)
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
    if "bits" not in options and (bits := _bits_of_sample(dataset)) < MAX_BITS:
        logger.info(
            "Images with 16 bits per channel have levels of %d bits (in a sample): they are read "
            "with `bits=%d`, so that they are not near black. It is remembered.",
            *(bits, bits),
        )
        options = {**options, "bits": bits}
        dataset = replace(dataset, opened_with={**dataset.opened_with, "bits": bits})
    if options != earlier:
        write_record(file, {"folder": str(root.resolve()), **options})
    return dataset


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
    existed = file.exists()
    file.unlink(missing_ok=True)
    return existed


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
