"""Parts of the report against oracles: curves, label errors, thumbnails, the feature map."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness
from sklearn.metrics import average_precision_score, roc_auc_score
from threadpoolctl import threadpool_limits

from hubretrain.errors import DataError
from hubretrain.evaluation.metrics import calibration_error
from hubretrain.files import file_sha256
from hubretrain.report import charts, curves, feature_map
from hubretrain.report.label_errors import confident_errors
from hubretrain.report.thumbnails import make_thumbnails
from tests.samples import encoded, write_digits


def predictions(
    n: int = 500, n_classes: int = 4, seed: int = 0, margin: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, n_classes, n)
    scores = random.normal(0, 1, (n, n_classes))
    scores[np.arange(n), labels] += margin
    said = np.exp(scores)
    return (said / said.sum(axis=1, keepdims=True)).round(6), labels


def test_thinned_curves_keep_their_areas() -> None:
    said, labels = predictions()
    for c, curve in enumerate(curves.class_curves(said, labels)):
        assert curve is not None
        area = np.trapezoid(curve["tpr"], curve["fpr"])
        assert area == pytest.approx(roc_auc_score(labels == c, said[:, c]), abs=0.005)
        steps = np.diff(curve["recall"]) * np.array(curve["precision"][1:])
        exact = average_precision_score(labels == c, said[:, c])
        assert steps.sum() == pytest.approx(exact, abs=0.01)


def test_the_bins_of_the_reliability_diagram_are_those_of_the_calibration_error() -> None:
    said, labels = predictions()
    bins = curves.calibration(said, labels)
    assert sum(one["n"] for one in bins) == len(labels)
    gaps = sum(one["n"] * abs(one["accuracy"] - one["confidence"]) for one in bins)
    assert gaps / len(labels) == pytest.approx(float(calibration_error(said, labels)), abs=1e-4)


def test_counts_at_thresholds_include_the_threshold_itself() -> None:
    said = np.array([[0.5, 0.5], [0.505, 0.495], [1.0, 0.0]])
    right, wrong = curves.counts_at_thresholds(said, np.array([0, 1, 0]))
    assert right[0, 100] == 2
    assert wrong[0, 100] == 1
    assert wrong[0, 102] == 0
    assert right[0, 200] == 1
    assert right[:, 0].tolist() == [2, 1]


def test_a_class_that_is_all_or_none_of_the_images_has_no_curve() -> None:
    said = np.array([[0.9, 0.1, 0.0], [0.6, 0.3, 0.1]])
    assert curves.class_curves(said, np.array([0, 0])) == [None, None, None]


def test_confident_errors_are_those_of_the_paper_counted_one_by_one() -> None:
    said, labels = predictions(300, 5, seed=3)
    thresholds = [said[labels == c, c].mean() for c in range(5)]
    for row, found in enumerate(confident_errors(said, labels).tolist()):
        above = [c for c in range(5) if said[row, c] >= thresholds[c]]
        best = max(above, key=lambda c: said[row, c], default=int(labels[row]))
        if said[row].argmax() == labels[row]:
            best = int(labels[row])  # as cleanlab has it
        assert found == (best if best != labels[row] else -1)


def test_an_image_whose_likeliest_class_is_its_label_is_not_in_doubt() -> None:
    # Its own class is not confident (0.45 is below the mean of 0.675), the other is (0.4 = 0.4).
    said = np.array([[0.45, 0.4, 0.15], [0.9, 0.05, 0.05], [0.3, 0.4, 0.3], [0.3, 0.4, 0.3]])
    assert confident_errors(said, np.array([0, 0, 1, 2])).tolist() == [-1, -1, -1, 1]


def test_planted_label_errors_come_first() -> None:
    sharp, labels = predictions(1000, 3, seed=1, margin=5.0)
    truly = labels.copy()
    planted = np.flatnonzero(sharp.argmax(axis=1) == labels)[:50]
    labels[planted] = (labels[planted] + 1) % 3
    other = confident_errors(sharp, labels)
    found = np.flatnonzero(other >= 0)
    order = found[np.argsort(sharp[found, labels[found]])]
    hits = np.isin(order[:40], planted)
    assert hits.mean() > 0.75
    assert (other[order[:40]][hits] == truly[order[:40]][hits]).all()


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
    file.path.write_text("{", encoding="utf-8")
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


def test_thumbnails_lie_where_they_are_said_to_and_changed_files_have_none(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    paths = [f"{i}.png" for i in range(20)]
    for path in paths:
        ink = random.integers(0, 255, 3)
        pixels = np.broadcast_to(ink, (30, 40, 3)).astype(np.uint8)
        (tmp_path / path).write_bytes(encoded(pixels))
    sha256s = [file_sha256(tmp_path / path) for path in paths]
    (tmp_path / "3.png").write_bytes(encoded(np.zeros((30, 40, 3), np.uint8)))
    (tmp_path / "4.png").unlink()
    found = make_thumbnails(tmp_path, paths, sha256s, max_pixels=20 * 32 * 24)
    assert (found.width, found.height) == (32, 24)
    assert found.missing[3] == "its bytes have changed"
    assert found.missing[4] == "cannot be read (No such file or directory)"
    assert found.index[[3, 4]].tolist() == [-1, -1]
    (sheet,) = (
        Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in found.sheets
    )
    assert found.missing[19] == "there are too many images for a page"
    for row in (0, 5, 17):
        at = found.index[row]
        left, top = at % found.columns * 32, at // found.columns * 24
        shown = np.asarray(sheet.convert("RGB"), int)[top + 8 : top + 16, left + 8 : left + 24]
        small = ImageOps.fit(Image.open(tmp_path / paths[row]), (32, 24))
        assert np.abs(shown.mean(axis=(0, 1)) - np.asarray(small, int)[12, 16]).max() < 12


def test_the_pareto_front_holds_what_nothing_cheaper_beats() -> None:
    costs, values = [1.0, 2.0, 3.0, 2.0, 4.0], [0.5, 0.7, 0.6, 0.4, 0.9]
    assert charts.pareto(costs, values) == [0, 1, 4]


def test_ten_thousand_photographs_stay_under_twelve_megabytes(tmp_path: Path) -> None:
    # 10,000 thumbnails cost what their pixels cost; of 200 photographs a share of the budget.
    write_digits(tmp_path, 1)
    random = np.random.default_rng(0)
    paths = []
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    for i in range(200):
        left, top = random.integers(0, 440), random.integers(0, 280)
        path = f"{i}.jpg"
        pixels = photographs[i % 2][top : top + 140, left : left + 190]
        (tmp_path / path).write_bytes(encoded(np.ascontiguousarray(pixels), "JPEG"))
        paths.append(path)
    budget = 22_000_000 * 200 // 10_000
    found = make_thumbnails(tmp_path, paths, [""] * 200, max_pixels=budget)
    pictures = sum(map(len, found.sheets)) * 50
    said, _ = predictions(10_000, 7)
    order, thousandths = curves.top_classes(said)
    of_models = 5 * len(json.dumps([order.tolist(), thousandths.tolist()], separators=(",", ":")))
    paths_and_rows = 10_000 * (40 + 5 * 10)
    assert pictures + of_models + paths_and_rows < 12_000_000
