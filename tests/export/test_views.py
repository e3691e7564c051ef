"""Views to average over: which there are, and the same in numpy and in the graph."""

from __future__ import annotations

import numpy as np
import pytest

from hubretrain.data.images.augmentation import Augmentation
from hubretrain.errors import DataError
from hubretrain.export.views import AveragedView, averaged_views

STILL = Augmentation(horizontal_flip=False, crop=1)


def names(augmentation, n_views):
    return [view.name for view in averaged_views(augmentation, n_views)]


def test_the_image_comes_first_then_flips_then_turns_then_crops():
    skin = Augmentation(horizontal_flip=True, vertical_flip=True, rotate90=True)
    assert names(skin, 8)[:4] == ["image", "horizontal flip", "vertical flip", "half turn"]
    assert names(skin, 8)[4:6] == ["quarter turn", "three-quarter turn"]
    photographs = Augmentation(crop=0.5)
    crops = ["centred crop of 75 %", "centred crop of 75 %, horizontal flip"]
    assert names(photographs, 4) == ["image", "horizontal flip", *crops]
    assert len(averaged_views(photographs, 8)) == 8
    assert names(Augmentation(horizontal_flip=False, crop=1, scale=1), 2)[1].startswith("centred")


@pytest.mark.parametrize("horizontal", [False, True])
@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_the_flips_and_turns_are_those_that_augmentation_draws_and_no_other(
    horizontal, vertical, turned
):
    augmentation = Augmentation(
        horizontal_flip=horizontal, vertical_flip=vertical, rotate90=turned, crop=1
    )
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    drawn = set()
    for number in range(1, 200):
        draw = augmentation.draw("a", number, 0)
        view = image[:, :, ::-1] if draw.mirror else image
        view = view[:, ::-1] if draw.flip else view
        drawn.add(np.rot90(view, draw.quarter_turns, axes=(1, 2)).tobytes())
    views = averaged_views(augmentation, len(drawn))
    assert {view.of(image).tobytes() for view in views} == drawn
    with pytest.raises(DataError, match=f"`tta` is 9; expected 1 to {len(drawn)}: the augm"):
        averaged_views(augmentation, 9)


def test_more_views_than_the_augmentation_has_is_one_sentence():
    with pytest.raises(DataError) as error:
        averaged_views(STILL, 2)
    assert str(error.value) == (
        "`tta` is 2; expected 1 to 1: the augmentation that the model was trained on has these "
        "views: image."
    )


def test_a_centred_crop_is_enlarged_as_a_bilinear_resize_does():
    from scipy.ndimage import affine_transform

    image = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
    view, side = AveragedView(area=0.64), 0.8
    offset = 7.5 - side * 7.5  # about the centre of the pixels
    expected = np.stack(
        [affine_transform(image[0, ..., c], [side] * 2, [offset] * 2, order=1) for c in range(3)],
        axis=-1,
    )
    assert np.abs(view.of(image)[0] - expected).max() < 1e-6


@pytest.mark.parametrize("size", [8, 15])
def test_the_graph_makes_the_same_views(size):
    from hubretrain.export.graph import of_view
    from hubretrain.tensorflow import tf

    images = np.random.default_rng(0).random((2, size, size, 3), np.float32)
    for augmentation in (Augmentation(), Augmentation(rotate90=True, crop=0.3)):
        for view in averaged_views(augmentation, 8):
            graph = of_view(tf.constant(images), view).numpy()
            assert np.abs(graph - view.of(images)).max() < 1e-6, view.name
