"""The frozen part of a backbone, run once a view: its activations in HDF5, float16.

`finetune/<module>/trunk.h5`: `validation` (image, ...), the images as they are, and
`view_001` ... (image, ...), augmented views of the training images. Allocated and filled with
NaN when needed, written a batch at a time, so NaN says what is still to do, as in the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hubretrain.data.images import to_unit_tensor
from hubretrain.errors import ModuleError, RunError
from hubretrain.files import reserve
from hubretrain.finetuning.input_pipeline import (
    FIRST_EPOCH_VIEW,
    Index,
    PixelSource,
    TrainingImages,
    agains,
    split,
)
from hubretrain.modules import Cut
from hubretrain.progress import Bar, progress_shown

FORMAT = "hubretrain trunk 1"
BATCH_SIZE = 48
TRUNK_FACTS = ("module_sha256", "image_size", "value_range", "augmentation", "seed")
VALIDATION = "validation"


def worth_caching(cut: Cut, image_size: int) -> Cut:
    """The cut, if a view's activations in float16 take no more room than its 8-bit pixels.

    Raises:
        ModuleError: They take more, so little would be gained.
    """
    if 2 * int(np.prod(cut.shape)) > image_size * image_size * 3:
        raise ModuleError(f"its activations at {cut.name} would take more room than the pixels")
    return cut


class ActivationCache:
    """Gives the top of a backbone its activations, computed once a view.

    The first `n_views` epochs show the views that they would show without this cache; later
    ones show these again.

    Args:
        folder: Of the fine-tuning.
        cut: The backbone in two.
        pixels: Where pixels come from.
        train: The training images.
        validation: The validation images.
        n_views: Augmented views an image.
        facts: What the activations depend on besides, see `TRUNK_FACTS`.

    Raises:
        RunError: The file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        cut: Cut,
        pixels: PixelSource,
        train: TrainingImages,
        validation: TrainingImages,
        *,
        n_views: int,
        facts: dict[str, Any],
    ) -> None:
        self.cut, self.pixels, self.n_views = cut, pixels, n_views
        self.path = folder / "trunk.h5"
        self._images = {VALIDATION: validation}
        self._images |= {f"view_{k:03d}": train for k in range(1, n_views + 1)}
        contents = hashlib.sha256("\n".join([*train.sha256s, "", *validation.sha256s]).encode())
        identity = json.dumps({"cut": cut.name, "images": contents.hexdigest(), **facts})
        self._whole: set[str] = set()  # views in which nothing is missing
        try:
            self._file = self._opened(identity)
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # a full disk was reported before
            self._file.close()

    def told(self) -> str:
        """A sentence about the file that is left."""
        gigabytes = self.path.stat().st_size / 1e9
        return (
            f"The frozen part's activations stay in {self.path} ({gigabytes:.1f} GB) for "
            "--epochs +N; it may be deleted."
        )

    def epoch_views(self, order: Index, epoch: int) -> Index:
        """The number of the view that an epoch shows at each place of its order."""
        return FIRST_EPOCH_VIEW + 1 + (epoch - 1 + agains(order)) % self.n_views

    def fill(self, views: Index) -> None:
        """Computes what is missing of some views."""
        for number in np.unique(views):
            self._filled(int(number))

    def batches(
        self, images: TrainingImages, batches: Sequence[Index], views: Sequence[Index]
    ) -> Iterator[npt.NDArray[Any]]:
        """Activations of each batch: float16 of shape (n_images, *cut.shape).

        Args:
            images: The training or the validation images.
            batches: The images of each batch.
            views: The view of each image; 0 of validation images, those of an epoch of others.

        Raises:
            RunError: The disk is full.
            ModuleError: An activation is beyond the range of float16.
        """
        numbers = sorted({int(v) for of_batch in views for v in of_batch})
        assert all(images is self._images[_name(number)] for number in numbers)
        datasets = {number: self._filled(number) for number in numbers}
        for batch, of_batch in zip(batches, views, strict=True):
            found = np.empty((len(batch), *self.cut.shape), np.float16)
            for k, (i, number) in enumerate(zip(batch, of_batch, strict=True)):
                found[k] = datasets[int(number)][int(i)]
            yield found

    def _filled(self, number: int) -> h5py.Dataset:
        """The data set of a view, with what is missing computed."""
        name = _name(number)
        images = self._images[name]
        try:
            dataset = self._file.get(name) or self._allocated(name, len(images))
            if name in self._whole:
                return dataset
            order = np.arange(len(images))
            # Whole batches, always the same: a row's bits may depend on its place.
            todo = [b for b in split(order, BATCH_SIZE) if _is_torn(dataset[b[0] : b[-1] + 1])]
            views = [np.full(len(batch), number) for batch in todo]
            what = f"frozen part, {name.replace('_', ' ')}"
            with progress_shown(bool(todo)), Bar(what, sum(map(len, todo))) as bar:
                given = self.pixels.batches(images, todo, views)
                for batch, pixels in zip(todo, given, strict=True):
                    with np.errstate(over="ignore"):
                        activations = (
                            self.cut.trunk(to_unit_tensor(pixels)).numpy().astype(np.float16)
                        )
                    if not np.isfinite(activations).all():
                        raise ModuleError(
                            f"an activation at {self.cut.name} is beyond the range of float16; "
                            "fine-tune with --restart --trunk-views 0, without cached activations."
                        )
                    dataset[batch[0] : batch[-1] + 1] = activations
                    self._file.flush()
                    bar.advance(len(batch))
            self._whole.add(name)
        except (OSError, RuntimeError) as error:
            raise self._unwritable(error) from error
        return dataset

    def _allocated(self, name: str, n_images: int) -> h5py.Dataset:
        """A new data set of NaN, whole on the disk before it counts."""
        n_bytes = 2 * n_images * int(np.prod(self.cut.shape))
        check_room(self.path, n_bytes)
        dataset = self._file.create_dataset(
            name, (n_images, *self.cut.shape), np.float16, fillvalue=np.nan
        )
        for batch in split(np.arange(n_images), 1024):
            dataset[batch[0] : batch[-1] + 1] = np.nan
        self._file.flush()
        return dataset

    def _opened(self, identity: str) -> h5py.File:
        """The file, made anew where it is missing, damaged, or of other activations."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            with contextlib.suppress(OSError, KeyError):
                file = h5py.File(self.path, "r+", locking=False)
                known = (file.attrs.get("format"), file.attrs.get("identity"))
                if known == (FORMAT, identity):
                    return file
                file.close()
        file = h5py.File(self.path, "w", locking=False)
        file.attrs["format"], file.attrs["identity"] = FORMAT, identity
        file.flush()
        return file

    def _unwritable(self, error: Exception) -> RunError:
        return RunError(
            f"{self.path} cannot be written ({error}); make room and run the same command again, "
            "or do without cached activations: --restart --trunk-views 0."
        )


def check_room(path: Path, n_bytes: int) -> None:
    """Raises OSError where the disk has no room; HDF5 itself would tell only when it closes."""
    aside = path.with_name(f".{path.name}.room")
    try:
        reserve(aside, max(1, n_bytes))
    finally:
        aside.unlink(missing_ok=True)


def _name(number: int) -> str:
    return f"view_{number - FIRST_EPOCH_VIEW:03d}" if number else VALIDATION


def _is_torn(rows: npt.NDArray[Any]) -> bool:
    return bool(np.isnan(rows).any())
