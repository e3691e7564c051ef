"""Pages on images that may have several labels, in a browser, against numpy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hubretrain.data import TableOptions, open_dataset
from hubretrain.export import evaluate_export
from hubretrain.report import write_evaluation
from tests.browsing import asked
from tests.samples import encoded, photo_crops

NAMES = ["a", "<b>", "ç é"]
SCRIPT = """const text = id => document.getElementById(id).textContent;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const texts = (selector, ...keys) =>
    all(selector).map(one => [...keys.map(key => one.dataset[key]), one.textContent]);
  const counts = texts('#confusion button', 'label', 'kind');
  const mistakes = texts('#mistakes td', 'missed', 'false');
  all('#confusion button')[1].click();
  const falsely = all('#cell .card').length;
  all('#mistakes td.wrong')[0].click();
  const together = all('#cell .card').length;
  const focus = document.getElementById('focus');
  focus.value = '1';
  focus.dispatchEvent(new Event('change'));
  return {counts, mistakes, falsely, together, errors: text('errors-count'), about: text('about'),
    heads: texts('h3').flat(), tiles: texts('#metrics dt').flat(),
    slider: document.getElementById('threshold').value, steps: DATA.n_steps,
    marks: texts('#pr circle').flat().filter(Boolean),
    rows: all('#classes tbody tr').length, groups: texts('#by-threshold h4').flat(),
    sideways: document.documentElement.scrollWidth - innerWidth};"""


@pytest.fixture(scope="module")
def evaluated(label_export, tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("labelled") / "images", np.random.default_rng(0)
    folder.mkdir()
    rows = ["path,labels"]
    for i, pixels in enumerate(photo_crops(60)):
        (folder / f"{i:02d}.png").write_bytes(encoded(pixels))
        labels = [name for name in NAMES if random.random() < 0.5]
        rows.append(f"{i:02d}.png,{'|'.join(labels)}")
    (folder.parent / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    table = TableOptions(label_column="labels", multi_label=True)
    dataset = open_dataset(folder, labels=folder.parent / "labels.csv", table=table)
    return evaluate_export(label_export, dataset, cache=tmp_path_factory.mktemp("cache"))


def test_the_page_counts_each_label_and_the_mistakes_that_go_together(evaluated, browser, tmp_path):
    page = tmp_path / "evaluation.html"
    write_evaluation(evaluated, tmp_path, page)
    shown = asked(browser, page, tmp_path, SCRIPT, 400)
    counts = evaluated.label_counts.drop(columns="label")
    kinds = [name.replace("_", " ") for name in counts]
    expected = {
        (str(c), kind): counts.iloc[c, k]
        for (c, _), (k, kind) in product(enumerate(NAMES), enumerate(kinds))
    }
    assert {(c, kind): int(n) for c, kind, n in shown["counts"]} == expected
    assert shown["falsely"] == expected["0", "false positives"]
    missed = evaluated.labels & ~evaluated.decisions
    falsely = ~evaluated.labels & evaluated.decisions
    missed, falsely = (np.column_stack([m, ~m.any(axis=1)]) for m in (missed, falsely))
    together = missed.astype(int).T @ falsely.astype(int)
    together[-1, -1] = 0
    names = [*NAMES, "none"]
    assert {(r, c): n.replace("·", "0") for r, c, n in shown["mistakes"]} == {
        (r, c): str(together[i, j]) for (i, r), (j, c) in product(enumerate(names), repeat=2)
    }
    assert shown["together"] == together.ravel()[np.flatnonzero(together)[0]]
    assert shown["sideways"] <= 0


def test_the_page_marks_the_thresholds_and_leaves_out_what_does_not_apply(
    evaluated, browser, tmp_path
):
    page = tmp_path / "evaluation.html"
    write_evaluation(evaluated, tmp_path, page)
    shown = asked(browser, page, tmp_path, SCRIPT, 900)
    threshold = evaluated.thresholds[1]
    assert int(shown["slider"]) == round(threshold * shown["steps"])
    (mark,) = shown["marks"]
    assert mark.startswith(f"<b>, threshold {100 * threshold:.2f}")
    assert {"Counts of each label", "Mistakes that go together"} <= set(shown["heads"])
    assert "Confusion matrix" not in shown["heads"]
    assert "It does not apply to images that may have several labels." in page.read_text("utf-8")
    assert {"subset accuracy", "Hamming loss", "micro F1"} <= set(shown["tiles"])
    assert "accuracy" not in shown["tiles"]
    wrong = (evaluated.labels != evaluated.decisions).any(axis=1).sum()
    assert shown["errors"].startswith(f"Of 60 images {wrong} have other labels")
    assert "A label is decided on where its probability is above its threshold" in shown["about"]
    assert shown["rows"] == 3
    assert shown["groups"][0].startswith("True positives")
