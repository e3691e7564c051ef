"""Activations of the frozen part of a backbone, computed once per view and kept as float16 HDF5.

`finetune/<module>/trunk.h5` holds `validation` (image, ...), the unaugmented validation images, and
`view_001` ... (image, ...), augmented views of the training images. If the head takes features of
layers in the frozen part, `validation_layers` and `view_001_layers` ... (image, feature) hold
these, as float32, because the head was fitted on unrounded ones: of a feature whose values lie
close together float16 would leave little. Each is allocated full of NaN when it is first needed
and written batch by batch, so NaN marks what is still to compute, as in the bottleneck cache. One
that is finished has its digest in the attribute `sha256`, and all else is digested in the bytes
before the HDF5. What is damaged is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
from rich.filesize import decimal

from hubretrain.arrays import AnyArray, Float32Array, IntArray
from hubretrain.data.images import to_unit_tensor
from hubretrain.errors import ModuleError, RunError
from hubretrain.files import reserve
from hubretrain.finetuning.devices import Devices
from hubretrain.finetuning.input_pipeline import (
    FIRST_EPOCH_VIEW,
    PixelSource,
    TrainingImages,
    repetitions,
    split,
)
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.finetuning.steps import TrainedModel
from hubretrain.hdf5 import (
    check_digest_block,
    digest_block_size,
    open_hdf5,
    write_digest_but,
)
from hubretrain.modules import Cut, cut_below
from hubretrain.progress import Bar, progress_shown

FORMAT = "hubretrain trunk 2"
BATCH_SIZE = 48
VALIDATION = "validation"
_ROWS = 1024  # of a data set that are read or written at a time
_LOG = logging.getLogger(__name__)
_DEPENDS_ON = ("module_sha256", "layers", "image_size", "value_range", "augmentation", "seed")


class CachedView(NamedTuple):
    """The data sets of a view.

    Attributes:
        activations: float16 of shape (n_images, *cut.activations_shape).
        below: float32 of shape (n_images, cut.n_below); None where that is 0.
    """

    activations: h5py.Dataset
    below: h5py.Dataset | None

    def lacks(self, batch: IntArray) -> bool:
        """Return whether something of a batch of neighbouring images is still to compute."""
        rows = slice(batch[0], batch[-1] + 1)
        return any(d is not None and bool(np.isnan(d[rows]).any()) for d in self)

    def write(self, batch: IntArray, *arrays: AnyArray) -> None:
        """Write a batch of neighbouring images."""
        for dataset, array in zip(self, arrays, strict=True):
            if dataset is not None:
                dataset[batch[0] : batch[-1] + 1] = array

    @property
    def is_finished(self) -> bool:
        """Whether each data set has its digest."""
        return all(d is None or bool(d.attrs["sha256"]) for d in self)

    def is_damaged(self) -> bool:
        """Return whether a data set has a digest that is not that of its values."""
        return any(
            d is not None and d.attrs["sha256"] not in (b"", _digest_of(d).encode()) for d in self
        )

    def empty(self) -> None:
        """Make everything still to compute."""
        for dataset in self:
            if dataset is not None:
                dataset.attrs["sha256"] = _as_digest("")
                for rows in split(np.arange(len(dataset)), _ROWS):
                    dataset[rows[0] : rows[-1] + 1] = np.nan

    def finish(self) -> None:
        """Give each data set its digest."""
        for dataset in self:
            if dataset is not None:
                dataset.attrs["sha256"] = _as_digest(_digest_of(dataset))


def cacheable_cut(model: TrainedModel, options: FineTuneOptions, devices: Devices) -> Cut:
    """Return the cut between the frozen part of a backbone and the rest.

    Raises:
        ModuleError: The frozen part's activations cannot be cached; the message says why.
    """
    if options.train_batchnorm:
        raise ModuleError("BatchNorm is trained, so nothing of the backbone is frozen")
    if devices.n_replicas > 1:
        raise ModuleError("activations are cached for one device only")
    backbone = model.classifier.backbone
    cut = cut_below(backbone, model.trained_backbone_variables)
    return worth_caching(cut, backbone.stored.image_size)


def worth_caching(cut: Cut, image_size: int) -> Cut:
    """Return the cut, if a view's activations in float16 take no more bytes than its pixels.

    Features of layers below it do not count: they are no more than the bottleneck cache holds.

    Raises:
        ModuleError: They take more, so reading them would gain little.
    """
    n_bytes_of_pixels = image_size * image_size * 3
    if 2 * int(np.prod(cut.activations_shape)) > n_bytes_of_pixels:
        raise ModuleError(f"its activations at {cut.name} would take more space than the pixels")
    return cut


class ActivationCache:
    """Gives the top of a backbone its inputs, computed once per view.

    The first `n_views` epochs show the views that they would show without this cache; later
    ones show these again.

    Args:
        folder: Folder of the fine-tuning.
        cut: The backbone in two pieces.
        pixels: Source of the pixels.
        train: The training images.
        validation: The validation images.
        n_views: Number of augmented views per image.
        identity: Identity of the fine-tuning, of which a part decides the activations.

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
        identity: dict[str, Any],
    ) -> None:
        self.cut, self.pixels, self.n_views = cut, pixels, n_views
        self.path = folder / "trunk.h5"
        self._images = {VALIDATION: validation}
        self._images |= {f"view_{k:03d}": train for k in range(1, n_views + 1)}
        contents = hashlib.sha256("\n".join([*train.sha256s, "", *validation.sha256s]).encode())
        depends_on = {name: identity[name] for name in _DEPENDS_ON}
        self._complete: set[str] = set()  # data sets without NaN
        try:
            self._file = self._open(
                json.dumps({"cut": cut.name, "images": contents.hexdigest(), **depends_on})
            )
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(self, *_: object) -> None:
        # HDF5 reports a full disk once more at close, as RuntimeError; it was raised before.
        with contextlib.suppress(OSError, RuntimeError):
            self._file.close()

    def note(self) -> str:
        """Return a sentence about the file that is left."""
        return (
            f"The frozen part's activations stay in {self.path} "
            f"({decimal(self.path.stat().st_size)}) for further epochs; the file may be deleted."
        )

    def epoch_views(self, order: IntArray, epoch: int) -> IntArray:
        """Return the number of the view that an epoch shows at each position of its order."""
        return FIRST_EPOCH_VIEW + 1 + (epoch - 1 + repetitions(order)) % self.n_views

    def fill(self, views: IntArray) -> None:
        """Compute the activations of some views that are still missing."""
        for number in np.unique(views):
            self._filled(int(number))

    def batches(
        self, images: TrainingImages, batches: Sequence[IntArray], views: Sequence[IntArray]
    ) -> Iterator[tuple[AnyArray, Float32Array]]:
        """Yield the activations of each batch, and the features of layers in the frozen part.

        The former are float16 of shape (n_images, *cut.activations_shape), the latter float32 of
        shape (n_images, cut.n_below).

        Args:
            images: The training or the validation images.
            batches: Indices of the images of each batch.
            views: Number of the view of each image: 0 of validation images, an epoch's of others.

        Raises:
            RunError: The disk is full.
            ModuleError: An activation is beyond the range of float16.
        """
        numbers = sorted({int(number) for batch_views in views for number in batch_views})
        assert all(images is self._images[_name(number)] for number in numbers)
        self.fill(np.array(numbers))  # the file is opened anew for each, which closes data sets
        views_of = {number: self._filled(number) for number in numbers}
        for batch, batch_views in zip(batches, views, strict=True):
            activations = np.empty((len(batch), *self.cut.activations_shape), np.float16)
            below = np.empty((len(batch), self.cut.n_below), np.float32)
            for k, (i, number) in enumerate(zip(batch, batch_views, strict=True)):
                view = views_of[int(number)]
                activations[k] = view.activations[int(i)]
                if view.below is not None:
                    below[k] = view.below[int(i)]
            yield activations, below

    def _filled(self, number: int) -> CachedView:
        """Return the data sets of a view, with what is missing computed."""
        name = _name(number)
        images = self._images[name]
        try:
            view = self._view(name, len(images))
            if name not in self._complete:
                if view.is_damaged():
                    _LOG.warning("%s: %s is damaged and computed again.", self.path, name)
                    view.empty()
                # Whole batches, always the same ones: a row's bits may depend on its slot.
                order = np.arange(len(images))
                self._compute(view, number, [b for b in split(order, BATCH_SIZE) if view.lacks(b)])
                if not view.is_finished:
                    view.finish()
                    self._seal()
                    view = self._view(name, len(images))
                self._complete.add(name)
        except (OSError, RuntimeError) as error:
            raise self._unwritable(error) from error
        return view

    def _compute(self, view: CachedView, number: int, batches: list[IntArray]) -> None:
        """Compute and write batches of a view."""
        name = _name(number)
        views = [np.full(len(batch), number) for batch in batches]
        what = f"frozen part, {name.replace('_', ' ')}"
        with progress_shown(bool(batches)), Bar(what, sum(map(len, batches))) as bar:
            arrays = self.pixels.batches(self._images[name], batches, views)
            for batch, pixels in zip(batches, arrays, strict=True):
                outputs = self.cut.trunk(to_unit_tensor(pixels)).numpy()
                n_activations = outputs.shape[-1] - self.cut.n_below
                with np.errstate(over="ignore"):
                    activations = outputs[..., :n_activations].astype(np.float16)
                if not np.isfinite(activations).all():
                    raise ModuleError(
                        f"an activation at {self.cut.name} is beyond the range of float16; "
                        "fine-tune with `restart=True` and `trunk_views=0` instead."
                    )
                view.write(batch, activations, outputs[..., n_activations:])
                self._file.flush()
                bar.advance(len(batch))

    def _view(self, name: str, n_images: int) -> CachedView:
        """Return the data sets of a view; new ones are full of NaN, and on the disk."""
        n_below = self.cut.n_below
        wanted: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            name: ((n_images, *self.cut.activations_shape), np.dtype(np.float16))
        }
        if n_below:
            wanted[f"{name}_layers"] = ((n_images, n_below), np.dtype(np.float32))
        new = [key for key in wanted if key not in self._file]
        for key in new:
            shape, dtype = wanted[key]
            check_room(self.path, dtype.itemsize * int(np.prod(shape)))
            dataset = self._file.create_dataset(key, shape, dtype)
            CachedView(dataset, None).empty()
        if new:
            self._seal()
        activations, *below = (self._file[key] for key in wanted)
        return CachedView(activations, below[0] if below else None)

    def _open(self, identity: str) -> h5py.File:
        """Open the file; replace it if it is damaged or of other activations."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        attributes = {
            "format": np.bytes_(FORMAT),
            "identity": np.bytes_(hashlib.sha256(identity.encode()).hexdigest()),
        }
        block_size = digest_block_size(2 * len(self._images) + 1)
        if self.path.exists():
            with contextlib.suppress(OSError, ValueError):
                check_digest_block(self.path)
                file = open_hdf5(self.path, "r+", locking=False)
                if dict(file.attrs) == attributes and file.userblock_size >= block_size:
                    return file
                file.close()
        file = h5py.File(self.path, "w", locking=False, userblock_size=block_size)
        for name, value in attributes.items():
            file.attrs[name] = value
        file.flush()
        return file

    def _seal(self) -> None:
        """Write the digest of all but the values; a file that was killed before is made anew."""
        names = list(self._file)
        self._file.close()
        write_digest_but(self.path, names)
        self._file = h5py.File(self.path, "r+", locking=False)

    def _unwritable(self, error: Exception) -> RunError:
        return RunError(
            f"{self.path} cannot be written ({error}); free disk space and rerun the command, or "
            "use `restart=True` and `trunk_views=0`, without cached activations."
        )


def check_room(path: Path, n_bytes: int) -> None:
    """Raise OSError if the disk is full; HDF5 itself would notice only when it closes."""
    aside = path.with_name(f".{path.name}.room")
    try:
        reserve(aside, max(1, n_bytes))
    finally:
        aside.unlink(missing_ok=True)


def _digest_of(dataset: h5py.Dataset) -> str:
    """Return the sha256 of the values of a data set."""
    digest = hashlib.sha256()
    for rows in split(np.arange(len(dataset)), _ROWS):
        digest.update(dataset[rows[0] : rows[-1] + 1].tobytes())
    return digest.hexdigest()


def _as_digest(digest: str) -> npt.NDArray[np.bytes_]:
    """Return a digest, or '', as an attribute of fixed length."""
    return np.array(digest, dtype="S64")


def _name(number: int) -> str:
    return f"view_{number - FIRST_EPOCH_VIEW:03d}" if number else VALIDATION
