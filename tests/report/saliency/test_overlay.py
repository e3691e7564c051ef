from __future__ import annotations

import numpy as np

from hubretrain.report.saliency.overlay import eight_bits, overlaid
from tests.report.saliency.samples import SIZE


def test_an_overlay_is_bright_where_the_map_is() -> None:
    levels = eight_bits(np.eye(SIZE, dtype=np.float32), "gradcam")
    assert levels.dtype == np.uint8
    assert set(np.unique(levels)) == {0, 255}
    picture = np.asarray(overlaid(np.full((SIZE, SIZE, 3), 100, np.uint8), levels), float)
    diagonal = picture.mean(axis=-1)[np.eye(SIZE, dtype=bool)]
    assert diagonal.min() > picture.mean(axis=-1)[~np.eye(SIZE, dtype=bool)].max()
    assert eight_bits(np.zeros((4, 4), np.float32), "gradcam").max() == 0
