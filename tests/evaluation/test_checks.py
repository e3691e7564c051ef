"""What is refused as a prediction, and in which words."""

import numpy as np
import pytest

from hubretrain.errors import DataError
from hubretrain.evaluation.checks import check_predictions
from hubretrain.evaluation.metrics import METRICS
from tests.evaluation.samples import predictions


def good(shape=(4, 3)):
    return np.full(shape, 1 / shape[1]), np.array([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("probabilities", "labels", "weights", "message"),
    [
        (
            np.where(np.eye(4, 3) > 0, np.nan, 0.3),
            good()[1],
            None,
            "of 3 images are NaN or infinite",
        ),
        (good()[0] * 9, good()[1], None, "apply the softmax first"),
        (good()[0] - 0.5, good()[1], None, "apply the softmax first"),
        (good()[0] * 0.5, good()[1], None, "image 0 sum to 0.5; expected 1"),
        (good()[0][:, 0], good()[1], None, "expected (n_images, n_classes)"),
        (np.empty((0, 3)), np.empty(0, int), None, "neither of them 0"),
        (np.eye(3, dtype=int), np.arange(3), None, "has dtype int64; expected floats"),
        (good()[0], np.array([0, 1, 3, 0]), None, "from 0 to 3; expected 0 to 2"),
        (good()[0], np.array([0, 1, -1, 0]), None, "from -1 to 1; expected 0 to 2"),
        (good()[0], np.array([0, 1]), None, "shape (2,); expected (4,)"),
        (good()[0], np.array([0.0, 1, 2, 0]), None, "expected integers from 0 to 2"),
        (good()[0], good()[1], np.ones(3), "expected (4,) or (n_resamples, 4)"),
        (good()[0], good()[1], np.array([1, -1, 1, 1]), "negative or non-finite"),
        (good()[0], good()[1], np.array([[1, 1, 1, 1], [0, 0, 0, 0]]), "0 for every image"),
    ],
)
def test_bad_predictions_are_named_in_one_sentence(probabilities, labels, weights, message):
    with pytest.raises(DataError) as caught:
        check_predictions(probabilities, labels, weights)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_refuses_nan(name):
    probabilities, labels = predictions(11)
    probabilities[5, 2] = np.nan
    with pytest.raises(DataError, match="of 1 images are NaN or infinite, image 5 first"):
        METRICS[name].function(probabilities, labels, None)
