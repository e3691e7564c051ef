"""Looking after bottleneck files: status, verification, garbage collection, merging of parts."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.bottlenecks import (
    Bottlenecks,
    ForwardPassLog,
    RowIndex,
    bottleneck_files,
    compare_file,
    is_of_old_format,
    merge_files,
    repair_file,
    seal_file,
    shrink_file,
)
from hubretrain.data import ImageDataset, Quarantine
from hubretrain.errors import CacheError
from hubretrain.extraction.options import CacheOptions
from hubretrain.extraction.plan import PARTS, SLICES, wanted_rows
from hubretrain.locks import is_locked
from hubretrain.modules import current_digest
from hubretrain.progress import Bar

_log = logging.getLogger(__name__)

_PART = re.compile(r"(?P<module>.+)\.(?P<number>\d+)-of-(?P<n_parts>\d+)")


def verify_files(files: Sequence[Path], *, repair: bool = False) -> dict[Path, list[str]]:
    """Read every bottleneck of some files again.

    Args:
        files: Bottleneck files.
        repair: Empty views that are damaged, so that the next run computes them again, and move
            a file aside that cannot be read at all or is of another module than its name says.

    Returns:
        What is wrong with each file, as sentences: format, rows to do, bytes that changed; with
        `repair` what was done about it.

    Raises:
        LockedError: A file that is to be repaired is being written.
        WriteError: It cannot be repaired.
    """
    sentences: dict[Path, list[str]] = {}
    with Bar("verifying", len(files), "files") as bar:
        for file in files:
            sentences[file] = repair_file(file, _module_of(file)) if repair else _faults_of(file)
            bar.advance()
    return sentences


def _faults_of(file: Path) -> list[str]:
    try:
        if file.exists() and is_of_old_format(file):
            older = "is of an older format, which cannot be verified"
            return [f"{older}; run the same `hubretrain cache` command again, which renews it"]
        with Bottlenecks(file) as bottlenecks:
            bottlenecks.check_module(_module_of(file))
            return bottlenecks.verify()
    except CacheError as error:
        return [str(error).removeprefix(f"{file} ").removesuffix(".")]
    except OSError as error:
        return [f"cannot be read ({error.strerror or error})"]


def _module_of(file: Path) -> str:
    """Return the module that a bottleneck file, or a part of one, is named after."""
    part = _PART.fullmatch(file.stem)
    return part["module"] if part and file.parent.name == PARTS else file.stem


def cache_status(
    dataset: ImageDataset,
    cache: Path,
    *,
    n_views: int | None = None,
    minority_views: int | None = None,
    layers: str | int = "all",
) -> pd.DataFrame:
    """Return what is cached of a data set, and what the next run would compute and why.

    Args:
        dataset: The images.
        cache: The cache folder.
        n_views: Views per image that would be requested; by default those that each file has.
        minority_views: Views per image of the rarest class that would be requested.
        layers: Layers that would be requested; see `CacheOptions`.

    Returns:
        One row per file: `module`, `file`, `n_images`, `n_views`, `layers` (names of inner
        layers), `n_features` (theirs and the output's), `done` and `todo` (bottlenecks),
        `done_by_view` (list of ints), `bytes`, `images_per_second` (of the last run, NaN if
        unknown), `new`, `edited`, `gone` (images), `to_compute` (forward passes of the next run)
        and `why` (sentences).

    Raises:
        CacheError: Nothing is cached, or a number of views is out of range.
    """
    options = CacheOptions(n_views=n_views or 1, minority_views=minority_views, layers=layers)
    folder = dataset.cache_folder(cache)
    files = bottleneck_files(folder, recursive=True)
    digests = dataset.digests(cache)
    quarantine = Quarantine(folder)
    rows = wanted_rows(dataset, digests, quarantine, options.n_views, options.minority_views)
    costs = ForwardPassLog(folder)
    stems = {_module_of(file) for file in files}
    for name in dict.fromkeys(costs.table["module"]):
        if name not in stems:
            _log.warning(
                "%s holds no bottlenecks of %s, whose forward passes %s lists; cache the module "
                "again where a run needs it",
                *(folder, name, costs.file.name),
            )
    table = []
    for file in files:
        with Bottlenecks(file) as bottlenecks:
            rows_of_file = _rows_for(bottlenecks, rows, keep_views=n_views is None)
            speed = costs.images_per_second(str(bottlenecks.attributes["module"]))
            adds_layers = bottlenecks.lacks_layers and options.layers != "last"
            table.append(_status_of(bottlenecks, rows_of_file, speed, adds_layers=adds_layers))
    return pd.DataFrame(table)


def _rows_for(bottlenecks: Bottlenecks, rows: RowIndex, *, keep_views: bool) -> RowIndex:
    """Return those of the rows that a file is to hold.

    Args:
        bottlenecks: The file: of all rows, or a part, which holds the rows that it has. A slice is
            what a run for all rows continues.
        rows: The rows of the data set.
        keep_views: Whether each row is to have as many views as it has in the file, and a new one
            as many as the file has; else as many as `rows` says.
    """
    views_of = dict(zip(bottlenecks.sha256s, bottlenecks.n_views_of.tolist(), strict=True))
    if keep_views:
        n = [views_of.get(sha256, bottlenecks.n_views) for sha256 in rows.sha256]
        rows = replace(rows, n_views=np.where(rows.n_views > 0, n, 0).astype(np.int16))
    if bottlenecks.path.parent.name == PARTS:
        rows = rows.select([sha256 in views_of for sha256 in rows.sha256])
    return rows


def _status_of(
    bottlenecks: Bottlenecks,
    rows: RowIndex,
    images_per_second: float | None,
    *,
    adds_layers: bool,
) -> dict[str, Any]:
    """Return a file's row of the status table."""
    todo = bottlenecks.todo()
    wanted = np.arange(bottlenecks.n_views) < bottlenecks.n_views_of[:, None]
    done = wanted & ~todo
    comparison = compare_file(bottlenecks, rows, bottlenecks.attributes)
    n_views = comparison.rows.n_views
    to_compute = int(np.maximum(n_views - comparison.for_rows(done.sum(axis=1), 0), 0).sum())
    # A row that the file lacks is new, which does not count as more views.
    cached_views = comparison.for_rows(bottlenecks.n_views_of, np.iinfo(np.int16).max)
    is_slice = bottlenecks.path.parent.name == SLICES
    new = "images outside of the slice" if is_slice else "new images"
    counts = {
        new: comparison.n_new - comparison.n_edited,
        "edited images": comparison.n_edited,
        "images with more views": int((n_views > cached_views).sum()),
        "unfinished images": int(todo.any(axis=1).sum()),
    }
    why = [f"{count:,} {what}" for what, count in counts.items() if count]
    if comparison.n_gone:
        why.append(f"{comparison.n_gone:,} images are gone: their rows drop out")
    if adds_layers:
        why.append("features of inner layers are to be added")
        to_compute = int(n_views.sum())
    module = str(bottlenecks.attributes["module"])
    digest = None
    if "imported_from" not in bottlenecks.attributes:  # else one of that name has nothing to do
        digest = current_digest(module, str(bottlenecks.attributes["handle"]))
    if digest is not None and digest != bottlenecks.attributes["module_sha256"]:
        why.append(f"{module} is another module now: all of it has to be overwritten")
        to_compute = int(n_views.sum())
    return {
        "module": module,
        "file": str(bottlenecks.path),
        "n_images": bottlenecks.n_images,
        "n_views": bottlenecks.n_views,
        "layers": list(bottlenecks.layers),
        "n_features": bottlenecks.n_features_of(bottlenecks.layers),
        "done": int(done.sum()),
        "todo": int(todo.sum()),
        "done_by_view": done.sum(axis=0).tolist(),
        "bytes": bottlenecks.path.stat().st_size,
        "images_per_second": images_per_second,
        "new": counts[new],
        "edited": counts["edited images"],
        "gone": comparison.n_gone,
        "to_compute": to_compute,
        "why": why,
    }


def collect_garbage(
    dataset: ImageDataset, cache: Path, *, n_views: int | None = None, dry_run: bool = False
) -> list[tuple[Path, str, int]]:
    """Free the disk space of what nothing needs.

    That is rows of images that are gone, views beyond `n_views`, and files that killed runs
    left behind.

    Args:
        dataset: The images that the data set has now.
        cache: The cache folder.
        n_views: Number of views of each image to keep; by default all.
        dry_run: Whether to say only what would be removed.

    Returns:
        For each file: what is removed, in words, and how many bytes that frees.

    Raises:
        CacheError: A file cannot be written.
        LockedError: A file is being written.
    """
    folder = dataset.cache_folder(cache)
    removed = []
    for leftover in sorted(folder.rglob(".*")):
        if leftover.name.endswith((".new", ".lock")) and not is_locked(_target_of(leftover)):
            removed.append((leftover, "left by a killed run", leftover.stat().st_size))
            if not dry_run:
                leftover.unlink()
    present = set(dataset.digests(cache))
    for file in sorted(folder.rglob("[!.]*.h5")):
        shrinkage = shrink_file(file, present, n_views, dry_run=dry_run)
        if shrinkage is None:
            continue
        if not dry_run:
            seal_file(file)
        what = [f"{shrinkage.n_gone:,} images that are gone"] * bool(shrinkage.n_gone)
        if shrinkage.n_after < shrinkage.n_before:
            what.append(f"views {shrinkage.n_after} to {shrinkage.n_before - 1}")
        removed.append((file, ", ".join(what), shrinkage.n_bytes))
    return removed


def _target_of(leftover: Path) -> Path:
    """Return the file that a run was writing when it was killed."""
    return leftover.with_name(leftover.name[1:].rsplit(".", 1)[0])


def merge_parts(parts: Sequence[Path], output: Path | None = None) -> tuple[Path, int, list[int]]:
    """Merge the parts that several machines made of a data set into one bottleneck file.

    Args:
        parts: Bottleneck files of parts, or any of one module and data set.
        output: The file to make; by default named as the parts, without the part.

    Returns:
        The file, how many images it has, and the numbers of the parts that are missing.

    Raises:
        CacheError: The parts do not belong together, or the file cannot be written.
    """
    names = [_PART.fullmatch(part.stem) for part in parts]
    if output is None:
        if names[0] is None:
            raise CacheError(
                f"{parts[0]} is not named as a part; name the file to make with `output`."
            )
        output = parts[0].parent.parent / f"{names[0]['module']}.h5"
    if output.exists() and output not in parts:
        raise CacheError(f"{output} exists; remove it, merge it too, or choose another `output`.")
    counts = {name["n_parts"] for name in names if name is not None}
    if len(counts) > 1:
        raise CacheError(
            f"the parts are of {' and of '.join(sorted(counts))}; merge parts of one division."
        )
    present = {int(name["number"]) for name in names if name is not None}
    n_parts = int(next(iter(counts), "0"))
    missing = [number for number in range(1, n_parts + 1) if number not in present]
    rows = merge_files(parts, output)
    return output, len(rows), missing
