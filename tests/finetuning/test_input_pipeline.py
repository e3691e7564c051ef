from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from hubretrain.data.images.augmentation import Augmentation
from hubretrain.errors import RunError
from hubretrain.finetuning.input_pipeline import (
    PixelSource,
    TrainingImages,
    balanced,
    repetitions,
    shuffled,
    split,
)


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own():
    orders = [shuffled(50, seed=3, epoch=epoch) for epoch in (1, 2)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert not np.array_equal(*orders)
    assert np.array_equal(orders[0], shuffled(50, seed=3, epoch=1))


@pytest.mark.parametrize("seed", range(5))
def test_balanced_sampling_shows_classes_alike_and_images_of_a_class_alike(seed):
    labels = np.repeat([0, 1, 2], [70, 25, 6])
    order = balanced(labels, seed=seed, epoch=1)
    assert len(order) == len(labels)
    of_class = Counter(labels[order].tolist())
    assert max(of_class.values()) - min(of_class.values()) <= 1
    times = np.bincount(order, minlength=len(labels))
    for c in range(3):
        assert np.ptp(times[labels == c]) <= 1
    assert np.array_equal(order, balanced(labels, seed=seed, epoch=1))
    assert not np.array_equal(order, balanced(labels, seed=seed, epoch=2))


def test_an_image_that_comes_again_is_drawn_anew():
    order = np.array([4, 2, 4, 4, 2, 7])
    assert repetitions(order).tolist() == [0, 0, 1, 2, 1, 0]
    views = PixelSource(8, Augmentation(), 0).epoch_views(order, epoch=5)
    assert len(set(zip(order.tolist(), views.tolist(), strict=True))) == len(order)
    assert views[[0, 1, 5]].tolist() == [1005] * 3


def test_the_last_batch_may_be_smaller():
    assert [len(b) for b in split(np.arange(10), 4)] == [4, 4, 2]


def test_an_image_that_cannot_be_read_any_more_is_named(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"torn")
    sha256s = ["a", hashlib.sha256(b"torn").hexdigest()]
    images = TrainingImages(
        tmp_path, ["gone.png", "torn.png"], sha256s, np.zeros(2, np.int64), np.ones((2, 1), "f4")
    )
    source = PixelSource(8, Augmentation(), 0)
    with pytest.raises(RunError, match=r"gone.png: cannot be read \(No such file.*resume"):
        source.read(images, 0, 1)
    with pytest.raises(RunError, match=r"torn.png: no image of a know"):
        next(source.batches(images, [np.array([1])], [np.array([0])]))
