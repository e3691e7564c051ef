from __future__ import annotations

import numpy as np

from hubretrain.data.images import Augmentation
from hubretrain.extraction.pipeline import ImageTask, Stopwatch, extract
from hubretrain.extraction.plan import ExtractorSpec, Recipe
from hubretrain.modules import resolve
from tests.samples import encoded


def test_an_image_that_changes_during_a_run_is_not_taken_for_the_old_one(small_module, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(encoded(np.zeros((8, 8, 3), np.uint8)))
    recipe = Recipe((ExtractorSpec(resolve(str(small_module), image_size=8)),), Augmentation(), 0)
    (image,) = extract(recipe, [ImageTask(0, str(path), "ab" * 32, ((0,),))], [True])
    assert (image.reason, image.unread) == ("was changed after the run began", True)


def test_time_in_which_batches_overlap_is_counted_once():
    stopwatch = Stopwatch()
    assert stopwatch.count(1.0, 3.0) == 2.0
    assert stopwatch.count(2.0, 4.0) == 1.0  # from 3 to 4
    assert stopwatch.count(6.0, 7.0) == 1.0
