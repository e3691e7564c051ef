from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hubretrain.data.images.augmentation import Augmentation, Draw
from hubretrain.data.images.decoding import view

PHOTOS = load_sample_images().images
EVERYTHING = Augmentation(
    vertical_flip=True, rotate90=True, crop=0.3, scale=0.3, saturation=0.3, hue=0.1
)


def in_batch(images, draws, size):
    from hubretrain.data.images.batched import batch_views

    return batch_views(images, draws, size)


@pytest.mark.parametrize("size", [32, 224])
def test_a_batch_of_views_has_the_pixels_of_each_view_to_one_level(size):
    images = [PHOTOS[0], PHOTOS[1][:100, :317], PHOTOS[0][200:259, 100:171], PHOTOS[1]] * 4
    draws = [None, *(EVERYTHING.draw("ab" * 32, v, 0) for v in range(1, 16))]
    together = in_batch(images, draws, size).astype(int)
    for pixels, image, draw in zip(together, images, draws, strict=True):
        alone = view(Image.fromarray(image), size, draw).astype(int)
        difference = np.abs(pixels - alone)
        # One level in the resize becomes up to two where contrast is raised and rounded again.
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.03


def test_a_batch_beyond_the_memory_for_it_is_cut_in_parts_of_the_same_pixels(monkeypatch):
    from hubretrain.data.images import batched as batch_views

    high, wide = PHOTOS[0][:, :50], PHOTOS[1][:50]
    images = [high, wide, PHOTOS[0][:60, :70], high, wide]
    draws = [EVERYTHING.draw("cd" * 32, v, 0) for v in range(5)]
    whole = in_batch(images, draws, 32)
    sizes = []
    some = batch_views._some_views

    def noted(images, draws, size):
        sizes.append(len(images))
        return some(images, draws, size)

    monkeypatch.setattr(batch_views, "_some_views", noted)
    shared = high.shape[0] * wide.shape[1] * 3
    monkeypatch.setattr(batch_views, "_FLOATS_AT_ONCE", 2 * shared)
    assert (in_batch(images, draws, 32) == whole).all()
    assert sizes == [2, 2, 1]


def test_mirrors_and_quarter_turns_in_a_batch_are_those_of_one_view():
    image, whole = PHOTOS[0][:90, :140], (0.0, 0.0, 1.0, 1.0)
    draws = [
        Draw(whole, mirror=mirror, flip=flip, quarter_turns=turns)
        for mirror in (False, True)
        for flip in (False, True)
        for turns in range(4)
    ]
    together = in_batch([image] * len(draws), draws, 64).astype(int)
    for pixels, draw in zip(together, draws, strict=True):
        assert np.abs(pixels - view(Image.fromarray(image), 64, draw)).max() <= 1


def test_a_view_does_not_depend_on_the_sizes_of_the_others():
    draw = EVERYTHING.draw("cd" * 32, 1, 0)
    small, large = PHOTOS[0][:50, :60], PHOTOS[1]
    alone = in_batch([small], [draw], 64)[0].astype(int)
    assert np.abs(in_batch([large, small], [None, draw], 64)[1] - alone).max() <= 1
