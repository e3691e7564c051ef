"""Looking after bottleneck files: what they hold, what is wrong, what can go; merging parts."""

from __future__ import annotations

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
    merge_files,
    seal_file,
    shrink_file,
)
from hubretrain.data import ImageDataset, Quarantine
from hubretrain.errors import CacheError
from hubretrain.extraction.plan import PARTS, rows_of
from hubretrain.locks import is_locked
from hubretrain.modules import current_digest
from hubretrain.progress import Bar

_PART = re.compile(r"(?P<module>.+)\.(?P<number>\d+)-of-(?P<n_parts>\d+)")


def verify_files(files: Sequence[Path]) -> dict[Path, list[str]]:
    """What is wrong with each file, a sentence each: format, rows to do, bytes that changed.

    Args:
        files: Bottleneck files.
    """
    found: dict[Path, list[str]] = {}
    with Bar("verifying", len(files), "files") as bar:
        for file in files:
            try:
                with Bottlenecks(file) as bottlenecks:
                    found[file] = bottlenecks.verify()
            except CacheError as error:
                found[file] = [str(error).removeprefix(f"{file} ")]
            bar.advance()
    return found


def cache_status(
    dataset: ImageDataset,
    cache: Path,
    *,
    n_views: int | None = None,
    minority_views: int | None = None,
) -> pd.DataFrame:
    """What is cached of a data set, and what the next run would compute and why.

    Args:
        dataset: The images.
        cache: The cache.
        n_views: Views that would be asked for; by default those that each file has.
        minority_views: Likewise, of the rarest class.

    Returns:
        One row a file: `module`, `file`, `n_images`, `n_views`, `done` and `todo`
        (bottlenecks), `done_by_view` (list of ints), `bytes`, `images_per_second` (of the
        last run, NaN if unknown), `new`, `edited`, `gone` (images), `to_compute`
        (forward passes of the next run) and `why` (sentences).

    Raises:
        CacheError: Nothing is cached.
    """
    place = dataset.cache_folder(cache)
    files = bottleneck_files(place, recursive=True)
    digests = dataset.digests(cache)
    passes = ForwardPassLog(place)
    table = []
    for file in files:
        with Bottlenecks(file) as old:
            asked = rows_of(dataset, digests, Quarantine(place), n_views or 1, minority_views)
            known = dict(zip(old.sha256s, old.n_views_of.tolist(), strict=True))
            if n_views is None:  # as many as it has, and as many for what is new
                n = [known.get(s, old.n_views) for s in asked.sha256]
                asked = replace(asked, n_views=np.where(asked.n_views > 0, n, 0).astype(np.int16))
            if file.parent.name == PARTS:
                asked = asked.select([s in known for s in asked.sha256])
            table.append(
                _status_of(old, asked, passes.images_per_second(str(old.attributes["module"])))
            )
    return pd.DataFrame(table)


def _status_of(
    old: Bottlenecks, asked: RowIndex, images_per_second: float | None
) -> dict[str, Any]:
    todo = old.todo()
    wanted = np.arange(old.n_views) < old.n_views_of[:, None]
    found = compare_file(old, asked, old.attributes)
    done = wanted & ~todo
    kept = found.for_rows(done.sum(axis=1), 0)
    to_compute = int(np.maximum(found.rows.n_views - kept, 0).sum())
    why = []
    new, edited = found.n_new - found.n_edited, found.n_edited
    had = found.for_rows(old.n_views_of, np.iinfo(np.int16).max)
    more = int((found.rows.n_views > had).sum())
    for n, what in (
        (new, "new images"),
        (edited, "edited images"),
        (more, "images with more views"),
        (int(todo.any(axis=1).sum()), "unfinished images"),
    ):
        if n:
            why.append(f"{n:,} {what}")
    if found.n_gone:
        why.append(f"{found.n_gone:,} images are gone: their rows drop out")
    module, digest = str(old.attributes["module"]), str(old.attributes["module_sha256"])
    now = current_digest(module, str(old.attributes["handle"]))
    if now is not None and now != digest:
        why.append(f"{module} is another module now: all of it, with `overwrite`")
        to_compute = int(found.rows.n_views.sum())
    return {
        "module": module,
        "file": str(old.path),
        "n_images": old.n_images,
        "n_views": old.n_views,
        "done": int(done.sum()),
        "todo": int(todo.sum()),
        "done_by_view": done.sum(axis=0).tolist(),
        "bytes": old.path.stat().st_size,
        "images_per_second": images_per_second,
        "new": new,
        "edited": edited,
        "gone": found.n_gone,
        "to_compute": to_compute,
        "why": why,
    }


def collect_garbage(
    dataset: ImageDataset, cache: Path, *, n_views: int | None = None, dry_run: bool = False
) -> list[tuple[Path, str, int]]:
    """Gives back the room of what nothing needs.

    That is rows of images that are gone, views beyond `n_views`, and files that killed runs
    left behind.

    Args:
        dataset: The images that are there.
        cache: The cache.
        n_views: Views to keep of each image; by default all.
        dry_run: Only say what would go.

    Returns:
        For each file: what goes, in words, and how many bytes.

    Raises:
        CacheError: A file cannot be written.
        LockedError: A file is being written.
    """
    place = dataset.cache_folder(cache)
    found = []
    for left in sorted(place.rglob(".*")):
        if left.name.endswith((".new", ".lock")) and not is_locked(_written(left)):
            found.append((left, "left by a killed run", left.stat().st_size))
            if not dry_run:
                left.unlink()
    present = set(dataset.digests(cache))
    for file in sorted(place.rglob("[!.]*.h5")):
        shrunk = shrink_file(file, present, n_views, dry_run=dry_run)
        if shrunk is None:
            continue
        if not dry_run:
            seal_file(file)
        what = [f"{shrunk.n_gone:,} images that are gone"] * bool(shrunk.n_gone)
        if shrunk.n_after < shrunk.n_before:
            what.append(f"views {shrunk.n_after} to {shrunk.n_before - 1}")
        found.append((file, ", ".join(what), shrunk.n_bytes))
    return found


def _written(left: Path) -> Path:
    """The file that a killed run was writing."""
    return left.with_name(left.name[1:].rsplit(".", 1)[0])


def merge_parts(parts: Sequence[Path], output: Path | None = None) -> tuple[Path, int, list[int]]:
    """Makes one bottleneck file of the parts that several machines made of a data set.

    Args:
        parts: Bottleneck files made with `part`, or any of one module and data set.
        output: The file to make; by default the parts' name without the part.

    Returns:
        The file, how many images it has, and the numbers of the parts that are missing.

    Raises:
        CacheError: The parts do not belong together, or the file cannot be written.
    """
    named = [_PART.fullmatch(part.stem) for part in parts]
    if output is None:
        if named[0] is None:
            raise CacheError(f"{parts[0]} is not named as a part; say with `output` what to make.")
        output = parts[0].parent.parent / f"{named[0]['module']}.h5"
    if output.exists() and output not in parts:
        raise CacheError(
            f"{output} is there already; remove it, merge it too, or name another `output`."
        )
    counts = {name["n_parts"] for name in named if name is not None}
    if len(counts) > 1:
        raise CacheError(
            f"the parts are of {' and of '.join(sorted(counts))}; merge parts of one division."
        )
    there = {int(name["number"]) for name in named if name is not None}
    missing = [n for n in range(1, int(next(iter(counts), "0")) + 1) if n not in there]
    rows = merge_files(parts, output)
    return output, len(rows), missing
