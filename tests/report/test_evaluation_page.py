"""The page of an export on another data set, in a browser."""

from __future__ import annotations

import numpy as np

from hubretrain.data import open_dataset
from hubretrain.export import evaluate_export
from hubretrain.report import write_evaluation
from tests.browsing import asked
from tests.samples import encoded

SCRIPT = """const text = id => document.getElementById(id).textContent;
  const cells = [...document.querySelectorAll('#confusion td')].map(cell => cell.textContent);
  return {accuracy: document.querySelector('[data-metric="accuracy"]').firstChild.data, cells,
    errors: text('errors-count'), about: text('about'),
    sideways: document.documentElement.scrollWidth - innerWidth};"""


def test_the_page_shows_the_figures_and_confusions_of_the_evaluation(
    small_export, browser, tmp_path
):
    random = np.random.default_rng(0)
    for name, n in (("a", 12), ("<b>", 9), ("ç é", 6)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(n):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            (tmp_path / "images" / name / f"{i}.png").write_bytes(encoded(pixels))
    dataset = open_dataset(tmp_path / "images")
    evaluated = evaluate_export(small_export, dataset, cache=tmp_path / "cache")
    page = tmp_path / "evaluation.html"
    write_evaluation(evaluated, dataset.root, page)
    shown = asked(browser, page, tmp_path, SCRIPT, 420)
    assert shown["accuracy"] == f"{100 * evaluated.figures['accuracy'].estimate:.1f}"
    counts = evaluated.confusion.to_numpy()[:, 1:].ravel().tolist()
    assert [int(text.replace("·", "0")) for text in shown["cells"]] == counts
    wrong = (evaluated.decisions != evaluated.images["class_index"]).sum()
    assert shown["errors"].startswith(f"{wrong} of 27 images are misclassified")
    assert "of another data set" in shown["about"]
    assert shown["sideways"] <= 0
