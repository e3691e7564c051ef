from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness
from threadpoolctl import threadpool_limits

from hubretrain.errors import DataError
from hubretrain.report import feature_map


def test_a_map_keeps_neighbours_is_deterministic_and_is_remembered(tmp_path: Path) -> None:
    digits = load_digits()
    features = digits.data[:150].astype(np.float32)
    plane = feature_map.project(features)
    assert plane.min() >= 0
    assert plane.max() <= 1
    assert trustworthiness(features, plane, n_neighbors=8) > 0.95
    with threadpool_limits(2):
        np.testing.assert_array_equal(plane, feature_map.project(features))
    names = [f"{i}" for i in range(150)]
    file = feature_map.MapFile(tmp_path, "module", "tsne")
    identity = file.identity("digest", names, 0)
    assert file.load(identity) is None
    file.save(identity, names, plane)
    np.testing.assert_array_equal(file.load(identity), plane)
    assert file.load(file.identity("other", names, 0)) is None
    text = file.path.read_text(encoding="utf-8")
    for damaged in ("{", text.replace("0.1", "0.2", 1)):
        file.path.write_text(damaged, encoding="utf-8")
        assert file.load(identity) is None


@pytest.mark.parametrize("seed", [2**32 + 3, -1])
def test_any_seed_of_a_fit_gives_a_map(seed: int) -> None:
    features = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    plane = feature_map.project(features, seed=seed)
    np.testing.assert_array_equal(plane, feature_map.project(features, seed=seed % 2**32))


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_few_images_have_a_map_too(n: int) -> None:
    plane = feature_map.project(np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32))
    assert plane.shape == (n, 2)
    assert np.isfinite(plane).all()


def test_of_many_images_a_sample_is_mapped_whatever_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feature_map, "MAX_IMAGES", 10)
    names = [f"{i:02d}" for i in range(30)]
    chosen = feature_map.chosen_contents(names[::-1] + names)
    assert sorted(chosen) == names[:10]


def test_an_unknown_map_is_refused() -> None:
    with pytest.raises(DataError, match="`map_method` is 'pca'; expected one of tsne, umap"):
        feature_map.project(np.zeros((9, 3), np.float32), "pca")
