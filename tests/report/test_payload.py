"""What the page shows in a browser, against scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    multilabel_confusion_matrix,
    precision_score,
    recall_score,
)

from hubretrain.report.report import write_report
from hubretrain.report.run_data import gather
from hubretrain.runs import Run
from tests.browsing import asked
from tests.report.samples import NAMES, QUOTES, copied

CHOOSE = """
      const choose = (id, value, event) => { const box = document.getElementById(id);
        box.value = value; box.dispatchEvent(new Event(event)); };
"""


def test_what_the_browser_shows_is_what_scikit_learn_gives(
    browser: str, tuned: Run, page: Path, tmp_path: Path
) -> None:
    script = (
        CHOOSE
        + """
      const read = () => Object.fromEntries([...document.querySelectorAll('#threshold-metrics dd')]
        .map(dd => [dd.dataset.metric, dd.textContent]));
      const found = {titles: DATA.models.map(m => m.title), shown: [], errors: []};
      for (const m of [0, DATA.models.length - 1]) {
        choose('model', m, 'change');
        for (const focus of ['macro', 'micro', 0, 1]) for (const k of [40, 77, 150]) {
          choose('focus', focus, 'change'); choose('threshold', k, 'input');
          found.shown.push([m, focus, k, read()]);
        }
        found.errors.push(document.getElementById('errors-count').textContent);
      }
      choose('model', 0, 'change');
      found.matrix = [...document.querySelectorAll('#confusion tbody tr')].map(
        tr => [...tr.querySelectorAll('td')].map(td => td.textContent));
      const wrong = [...document.querySelectorAll('#confusion td')].find(
        td => td.dataset.label !== td.dataset.decision && td.textContent !== '·');
      wrong.click();
      found.cell = [Number(wrong.dataset.label), Number(wrong.dataset.decision)];
      found.cards = [...document.querySelectorAll('#cell .path')].map(p => p.textContent);
      found.tiles = document.querySelectorAll('#cell .tile:not(.none)').length;
      found.names = [...document.querySelectorAll('#classes tbody td:first-child')].map(
        td => td.textContent);
      found.quoted = DATA.images.path.filter(path => path.includes('quoted'));
      found.sideways = document.documentElement.scrollWidth - innerWidth;
      found.map = document.getElementById('map').width > 0;
      found.ticks = [2.5e-4, 5e-4, 7.5e-4, 0.3 * 1e-3, -2.5e-5, 0.001, 12500].map(formatNumber);
      return found;"""
    )
    found = asked(browser, page, tmp_path, script)
    gathered = gather(tuned)
    labels = gathered.images["class_index"].to_numpy()
    assert found["titles"][0] == "pixels, fine-tuned: test split"
    assert found["sideways"] <= 0
    assert found["map"]
    assert found["names"] == sorted(NAMES.values())
    assert found["ticks"] == ["2.5e-4", "5e-4", "7.5e-4", "3e-4", "-2.5e-5", "0.001", "12,500"]
    assert found["quoted"] == [QUOTES]
    for m, focus, k, shown in found["shown"]:
        model = gathered.models[m]
        truth = np.eye(3, dtype=int)[labels[model.rows]]
        said = (model.probabilities >= k / 200).astype(int)
        if isinstance(focus, int):
            truth, said = truth[:, focus], said[:, focus]
        average = {"average": focus} if isinstance(focus, str) else {}
        precision = precision_score(truth, said, zero_division=np.nan, **average)
        recall = recall_score(truth, said, **average)
        f1 = f1_score(truth, said, zero_division=0, **average)
        counts = multilabel_confusion_matrix(truth, said)
        if focus == "micro":
            counts = counts.sum(axis=0, keepdims=True)
        elif focus not in ("macro", "micro"):
            counts = counts[1:]  # of the class itself, not of the rest
        negatives = counts[:, 0].sum(axis=1)
        rate = (counts[:, 0, 1] / negatives).mean()
        shares = {"precision": precision, "recall": recall, "F1": f1, "false positive rate": rate}
        for name, share in shares.items():  # a half of a hundredth may go up or down
            assert float(shown[name].removesuffix(" %")) == pytest.approx(100 * share, abs=0.00501)
        assert int(shown["true negatives"]) == counts[:, 0, 0].sum()
        assert int(shown["true positives"]) == int((truth & said).sum())
        assert int(shown["false positives"]) == int(((1 - truth) & said).sum())
        assert int(shown["false negatives"]) == int((truth & (1 - said)).sum())
    first = gathered.models[0]
    matrix = confusion_matrix(labels[first.rows], first.decisions, labels=range(3))
    assert [[0 if n == "·" else int(n) for n in row] for row in found["matrix"]] == matrix.tolist()
    r, c = found["cell"]
    of_cell = first.rows[(labels[first.rows] == r) & (first.decisions == c)]
    assert sorted(found["cards"]) == sorted(gathered.images["path"].iloc[of_cell])
    assert found["tiles"] == len(found["cards"]) > 0
    n_wrong = int((labels[first.rows] != first.decisions).sum())
    assert found["errors"][0].startswith(f"{n_wrong} of {len(first.rows)} images")


def test_without_the_decision_rule_every_figure_is_that_of_the_likeliest_class(
    browser: str, tuned: Run, page: Path, tmp_path: Path
) -> None:
    run = copied(tuned, tmp_path / "run")
    priors = (0.8, 0.15, 0.05)  # as if the classes were not balanced
    record = replace(run.finetune.modules["pixels"], adjust=2.0, priors=priors)
    run.write_finetune(replace(run.finetune, modules={"pixels": record}))
    write_report(run, n_saliency=0)
    script = """
      const box = document.getElementById('rule'), read = () => ({
        figures: Object.fromEntries([...document.querySelectorAll('#metrics dd')].map(
          dd => [dd.dataset.metric, [dd.firstChild.textContent, dd.children.length]])),
        classes: [...document.querySelectorAll('#classes tbody tr')].map(
          tr => [3, 4, 5].map(k => tr.children[k].firstChild.textContent)),
        about: document.getElementById('about').textContent,
        errors: document.getElementById('errors-count').textContent,
        shown: box.parentElement.getClientRects().length,
      }), found = [read()];
      box.click();
      return [...found, read()];"""
    ruled, plain = asked(browser, run.folder / "report.html", tmp_path, script)
    model = gather(run).models[0]
    labels = gather(run).images["class_index"].to_numpy()[model.rows]
    for shown, said in ((ruled, model.decisions), (plain, model.probabilities.argmax(axis=1))):
        oracles = {
            "accuracy": accuracy_score(labels, said),
            "balanced_accuracy": balanced_accuracy_score(labels, said),
            "macro_f1": f1_score(labels, said, average="macro"),
            "unadjusted_accuracy": accuracy_score(labels, model.probabilities.argmax(axis=1)),
        }
        for name, value in oracles.items():
            assert float(shown["figures"][name][0]) == pytest.approx(100 * value, abs=0.0501)
        options = {"average": None, "zero_division": 0}
        for k, score in enumerate((recall_score, precision_score, f1_score)):
            of_class = [float(line[k].replace("–", "0")) for line in shown["classes"]]
            assert of_class == pytest.approx(100 * score(labels, said, **options), abs=0.0501)
        n_wrong = int((labels != said).sum())
        assert shown["errors"].startswith(f"{n_wrong} of {len(labels)} images")
    assert ruled["figures"]["accuracy"][0] != plain["figures"]["accuracy"][0]
    assert ruled["figures"]["accuracy"][1] == 1  # with its interval
    assert plain["figures"]["accuracy"][1] == 0
    assert "Decisions use logit adjustment of strength 2;" in ruled["about"]
    assert "Decisions are the top-1 class, not adjusted." in plain["about"]
    script = "return document.getElementById('rule').parentElement.getClientRects().length;"
    assert ruled["shown"] == 1
    assert asked(browser, page, tmp_path, script) == 0  # this one has no rule to switch off


def test_images_by_threshold_a_suggested_threshold_and_another_models_curves(
    browser: str, tuned: Run, page: Path, tmp_path: Path
) -> None:
    script = (
        CHOOSE
        + """
      const groups = () => [...document.querySelectorAll('#by-threshold .pair')].map(pair =>
        [pair.dataset.group, pair.querySelector('h4').textContent,
         [...pair.querySelectorAll('.path')].map(path => path.textContent)]);
      const found = {asked: document.getElementById('by-threshold').textContent, suggested: []};
      choose('focus', 0, 'change'); choose('threshold', 80, 'input');
      document.getElementById('threshold').dispatchEvent(new Event('pointerdown'));
      choose('threshold', 140, 'input');
      found.groups = groups();
      for (const [wish, percent] of [['precision', 75], ['recall', 90], ['precision', 100.5]]) {
        document.getElementById('wish').value = wish;
        document.getElementById('wish-percent').value = percent;
        document.getElementById('suggest').click();
        found.suggested.push([document.getElementById('suggested').textContent, state.threshold]);
      }
      found.alone = document.querySelectorAll('#pr .line.dashed, #roc .line.dashed').length;
      choose('other', DATA.models.length - 1, 'change');
      found.both = document.querySelectorAll('#pr .line.dashed, #roc .line.dashed').length;
      found.key = document.getElementById('curve-key').textContent;
      found.titles = DATA.models.map(model => model.title);
      return found;"""
    )
    found = asked(browser, page, tmp_path, script)
    gathered = gather(tuned)
    model = gathered.models[0]
    images = gathered.images.iloc[model.rows]
    is_of_class = images["class_index"].to_numpy() == 0
    probs = model.probabilities[:, 0]
    assert found["asked"] == "Select a class to see its images."
    changed, *groups = found["groups"]
    assert changed[0] == "Change side between 0.400 and 0.700"
    between = set(images["path"][(probs > 0.399) & (probs < 0.701)])
    assert set(changed[2]) <= between
    names = ["True positives", "False positives", "False negatives", "True negatives"]
    assert [name for name, _, _ in groups] == names
    for (name, title, paths), (of_class, positive) in zip(
        groups, [(True, True), (False, True), (True, False), (False, False)], strict=True
    ):
        belongs = (is_of_class == of_class) & ((probs >= 0.7) == positive)
        assert title.startswith(f"{name}: {belongs.sum()}")
        near = np.abs(probs - 0.7) < 1e-3  # the page rounds probabilities to thousandths
        assert set(paths) <= set(images["path"][belongs | near])
        assert len(paths) == min(8, belongs.sum()) or near.any()
    steps = [(probs >= k / 200, k) for k in range(201)]
    precisions = [(is_of_class[said].mean(), k) for said, k in steps if said.any()]
    recalls = [((said & is_of_class).sum() / is_of_class.sum(), k) for said, k in steps]
    (of_precision, first), (of_recall, second), (none, third) = found["suggested"]
    assert first == next((k for precision, k in precisions if precision >= 0.75))
    assert second == max(k for recall, k in recalls if recall >= 0.9)
    assert of_precision.startswith(f"{first / 200:.3f}: precision ")
    assert of_recall.endswith("on the images that it was chosen on.")
    assert (none, third) == ("No threshold gives a precision of 100.5 %.", second)
    assert (found["alone"], found["both"]) == (0, 2)
    assert found["key"].endswith(f"solid: {found['titles'][0]}; dashed: {found['titles'][-1]}")


def test_on_a_telephone_each_module_is_a_card_and_errors_are_a_grid(
    browser: str, page: Path, tmp_path: Path
) -> None:
    script = """
      const style = selector => getComputedStyle(document.querySelector(selector));
      const board = document.querySelector('table.board');
      return {head: style('table.board thead').display, row: style('table.board tbody tr').display,
        name: getComputedStyle(board.querySelector('td[data-name]'), '::before').content,
        wide: board.scrollWidth - board.parentElement.clientWidth, cards: style('.cards').display,
        sideways: document.documentElement.scrollWidth - innerWidth};"""
    found = asked(browser, page, tmp_path, script, width=400)
    assert (found["head"], found["row"], found["cards"]) == ("none", "block", "grid")
    assert "accuracy" in found["name"]
    assert found["wide"] <= 0
    assert found["sideways"] <= 0
    assert asked(browser, page, tmp_path, script)["head"] == "table-header-group"
