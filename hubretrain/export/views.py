"""The views of an image that a prediction is averaged over: flips, quarter turns, centred crops.

They are the same for every image, and only such as augmentation draws: what mirrors, turns or crops
no image in training is not shown to the model afterwards. Their order is fixed, the first is the
image itself, and K views are the first K. The exported graph (`hubretrain.export.graph`) makes the
same ones of the pixels that it is given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hubretrain.arrays import Float32Array, IntArray
from hubretrain.data.images import Augmentation
from hubretrain.errors import DataError

MOST_VIEWS = 8
# Cropped areas lie evenly between the smallest that augmentation draws and the whole image; the
# middle one first, which is the mean of those that it draws.
_CROP_STEPS = (0.5, 0.25, 0.75)
_NAMES = {  # is mirrored, quarter turns after it
    (False, 0): "",
    (True, 0): "horizontal flip",
    (True, 2): "vertical flip",
    (False, 2): "half turn",
    (False, 1): "quarter turn",
    (False, 3): "three-quarter turn",
    (True, 1): "horizontal flip and quarter turn",
    (True, 3): "horizontal flip and three-quarter turn",
}


@dataclass(frozen=True)
class AveragedView:
    """One view: a centred crop, enlarged to the size of the image, then mirrored, then turned.

    Attributes:
        mirror: Whether left and right are swapped.
        quarter_turns: Turns by 90 degrees against the clock, 0 to 3.
        area: Share of the image's area that the crop keeps, (0, 1].
    """

    mirror: bool = False
    quarter_turns: int = 0
    area: float = 1.0

    @property
    def name(self) -> str:
        """Name of the view in the manifest, such as `centred crop of 75 %, horizontal flip`."""
        crop = f"centred crop of {100 * self.area:.0f} %" if self.area < 1 else ""
        parts = (crop, _NAMES[self.mirror, self.quarter_turns])
        return ", ".join(filter(None, parts)) or "image"

    def positions(self, size: int) -> tuple[IntArray, Float32Array]:
        """Return where the rows, and the columns, of the enlarged crop lie in the image.

        Args:
            size: Height and width of the image, pixels.

        Returns:
            The row before each, int64 (size,), and its distance from it, float32 (size,) in
            [0, 1): a row is interpolated between that one and the next.
        """
        centre = (size - 1) / 2
        at = (np.arange(size) - centre) * math.sqrt(self.area) + centre
        before = np.minimum(np.floor(at).astype(np.int64), max(size - 2, 0))
        return before, (at - before).astype(np.float32)

    def of(self, pixels: Float32Array) -> Float32Array:
        """Return the view of each image, both float32 (n_images, size, size, channels)."""
        if self.area < 1:
            before, distance = self.positions(pixels.shape[1])
            for axis in (1, 2):
                share = distance.reshape((-1, 1, 1) if axis == 1 else (-1, 1))
                first, second = pixels.take(before, axis), pixels.take(before + 1, axis)
                pixels = first + share * (second - first)
        if self.mirror:
            pixels = pixels[:, :, ::-1]
        return np.rot90(pixels, self.quarter_turns, axes=(1, 2))


def averaged_views(augmentation: Augmentation, n_views: int) -> tuple[AveragedView, ...]:
    """Return the first views of an augmentation, the image itself first.

    Args:
        augmentation: What the model was trained on.
        n_views: Number of views, 1 to `MOST_VIEWS`.

    Raises:
        DataError: The augmentation has fewer such views.
    """
    views = tuple(itertools.islice(_views_of(augmentation), MOST_VIEWS))
    if not 1 <= n_views <= len(views):
        names = "; ".join(view.name for view in views)
        raise DataError(
            f"`tta` is {n_views}; expected 1 to {len(views)}: the augmentation that the model was "
            f"trained on has these views: {names}."
        )
    return views[:n_views]


def _views_of(augmentation: Augmentation) -> Iterator[AveragedView]:
    turns = range(4) if augmentation.rotate90 else range(1)
    drawn = {
        # Upside down is a mirror image that is turned by half.
        (mirror != flip, (turn + 2 * flip) % 4)
        for mirror in {False, augmentation.horizontal_flip}
        for flip in {False, augmentation.vertical_flip}
        for turn in turns
    }
    upright = [key for key in _NAMES if key in drawn]
    smallest = augmentation.crop / (1 + augmentation.scale) ** 2
    areas = [1 - step * (1 - smallest) for step in _CROP_STEPS] if smallest < 1 else []
    for area, (mirror, quarter_turns) in itertools.product([1.0, *areas], upright):
        yield AveragedView(mirror, quarter_turns, area)
