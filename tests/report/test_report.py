"""The report of a run whose names are hostile, in a browser and against scikit-learn."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    multilabel_confusion_matrix,
    precision_score,
    recall_score,
)
from threadpoolctl import threadpool_limits

from hubretrain.cli import main
from hubretrain.cli.cache import fill
from hubretrain.data import SplitOptions
from hubretrain.data.dataset import open_dataset
from hubretrain.data.splitting.folds import TEST
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.report import provenance
from hubretrain.report.report import write_report
from hubretrain.report.run_data import gather
from hubretrain.run_tables import OUT_OF_FOLD, TEST_PREDICTIONS
from hubretrain.runs import FineTunedModuleRecord, FineTuneRecord, OrderRecord, Run
from hubretrain.screening import ScreenOptions, formatting
from hubretrain.screening.fit import screen_modules
from tests.browsing import asked, run
from tests.samples import write_digits
from tests.screening.test_fit import write_cache

SCRIPT = "<script>alert(1)</script>"
QUOTES = '0/it\'s "quoted" & <b>bold.png'
NAMES = {"0": SCRIPT, "1": 'one\'s "own" & </script>', "2": "NA"}
L2 = (1.0, 100.0)


def write_run(place: Path, n_images: int = 240) -> Run:
    """A fitted run on digits with hostile class and file names, and a fine-tuned module."""
    data = write_digits(place / "data", n_images)
    table = [(p.relative_to(data).as_posix(), NAMES[p.parent.name]) for p in data.rglob("*.png")]
    first = next(path for path, label in table if label == SCRIPT)
    (data / first).rename(data / QUOTES)
    table = [(QUOTES if p == first else p, label) for p, label in table]
    labels = place / "labels.csv"
    pd.DataFrame(sorted(table), columns=["path", "label"]).to_csv(labels, index=False)
    for module, columns in (("pixels", slice(None)), ("half", slice(5))):
        write_cache(
            data, place / "cache", module, columns=columns, n_views=2, facts={"gflops": 1.0}
        )
    dataset = open_dataset(data, labels=labels)
    run = Run(place / "runs" / "digits")
    with threadpool_limits(1):
        screen_modules(
            dataset, run, ScreenOptions(l2=L2, split=SplitOptions(n_folds=3)), cache=place / "cache"
        )
    return run


def write_fine_tuned(run: Run, module: str = "pixels") -> None:
    """What fine-tuning leaves in a run: its files, of predictions that are mostly right."""
    gathered = gather(run)
    random = np.random.default_rng(0)
    folder = run.finetune_folder(module)
    folder.mkdir(parents=True)
    for file, fold in (("predictions.csv", TEST), ("validation.csv", 0)):
        images = gathered.images[gathered.images["fold"] == fold]
        scores = random.normal(0, 1, (len(images), 3))
        scores[np.arange(len(images)), images["class_index"]] += 2
        said = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        table = images[["path", "sha256", "label"]].copy()
        for c, name in enumerate(gathered.class_names):
            table[f"p({name})"] = said[:, c].round(6)
        table.to_csv(folder / file, index=False)
    history = {"epoch": [0, 1, 2], "learning_rate": [0.0, 1e-3, 5e-4], "loss": [np.nan, 0.5, 0.2]}
    history |= {"validation_loss": [0.9, 0.6, 0.7], "validation_accuracy": [0.8, 0.9, 0.88]}
    pd.DataFrame(history | {"kept": [False, True, False]}).to_csv(
        folder / "history.csv", index=False
    )
    figures = {"accuracy": (0.9, 0.8, 0.95)}
    tuning = FineTuneOptions(unfreeze_last=23, epochs=2, balanced_sampling=True, l2_sp=0.01)
    tuning.save(folder)
    record = FineTunedModuleRecord(
        figures, figures, {}, {}, 0.0, (0.4, 0.3, 0.3), tuning.identity(), 1
    )
    order = OrderRecord(("pixels", "half"), ("half", "pixels"), -1.0, 0.02, "accuracy")
    run.write_finetune(FineTuneRecord({module: record}, module, order))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def tuned(fitted: Run) -> Run:
    write_fine_tuned(fitted)
    write_report(fitted, n_saliency=0)
    return fitted


@pytest.fixture
def page(tuned: Run) -> Path:
    return tuned.folder / "report.html"


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text)[1])


def test_the_page_needs_nothing_but_itself_and_every_name_stays_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert SCRIPT not in text
    assert "<b>bold" not in text
    assert text.count("<script") == text.count("</script>") == 2  # its data and its own
    assert not re.search(r"(src|href)\s*=\s*(?![\"']?(data:image/webp;base64,|#))", text)
    assert not re.search(r"url\((?!data:image/webp;base64,)", text)
    assert "@import" not in text
    assert re.search(r"default-src 'none'; [^\"]*script-src 'sha256-[\w+/=]{44}'\"", text)
    assert data_of(page)["classes"] == sorted(NAMES.values())


def test_the_page_opens_from_disk_without_a_request_or_an_error(
    browser: str, page: Path, tmp_path: Path
) -> None:
    for width, scheme in ((1280, 1), (400, 0)):
        ran = run(
            browser,
            tmp_path / "profile",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={width},2000",
            f"--screenshot={tmp_path / f'{width}.png'}",
            page.as_uri(),
        )
        assert "CONSOLE" not in ran.stderr  # a refused script, load or an exception
        light = np.median(np.asarray(Image.open(tmp_path / f"{width}.png").convert("L")))
        assert light > 200 if scheme else light < 60


def test_what_the_browser_shows_is_what_scikit_learn_gives(
    browser: str, tuned: Run, page: Path, tmp_path: Path
) -> None:
    script = """
      const choose = (id, value, event) => { const box = document.getElementById(id);
        box.value = value; box.dispatchEvent(new Event(event)); };
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
    matrix = confusion_matrix(labels[first.rows], first.decided, labels=range(3))
    assert [[0 if n == "·" else int(n) for n in row] for row in found["matrix"]] == matrix.tolist()
    r, c = found["cell"]
    of_cell = first.rows[(labels[first.rows] == r) & (first.decided == c)]
    assert sorted(found["cards"]) == sorted(gathered.images["path"].iloc[of_cell])
    assert found["tiles"] == len(found["cards"]) > 0
    n_wrong = int((labels[first.rows] != first.decided).sum())
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
    for shown, said in ((ruled, model.decided), (plain, model.probabilities.argmax(axis=1))):
        oracles = {
            "accuracy": accuracy_score(labels, said),
            "balanced_accuracy": balanced_accuracy_score(labels, said),
            "macro_f1": f1_score(labels, said, average="macro"),
            "plain_accuracy": accuracy_score(labels, model.probabilities.argmax(axis=1)),
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


def test_a_narrow_window_needs_no_sideways_scrolling(
    browser: str, page: Path, tmp_path: Path
) -> None:
    found = asked(
        browser, page, tmp_path, "return document.documentElement.scrollWidth - innerWidth;", 500
    )
    assert found <= 0
    script = """const wide = document.querySelector('table.board').parentElement;
      return [wide.scrollWidth - wide.clientWidth,
        [...document.querySelectorAll('table.board th')].map(th => th.textContent)];"""
    too_wide, heads = asked(browser, page, tmp_path, script)
    assert too_wide <= 0  # the leaderboard at 1280 pixels
    assert heads[3:6] == ["accuracy", "balanced accuracy", "top-3 accuracy"]
    metrics = formatting.shown_metrics("macro_f1")
    assert [formatting.metric_title(metric, "macro_f1") for metric in metrics] == [
        "macro F1",
        "balanced accuracy",
        "unadjusted accuracy",
        "top-3 accuracy",
    ]


def test_the_same_run_gives_the_same_bytes_even_without_what_it_remembers(
    tuned: Run, page: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.html"
    write_report(tuned, output=again, n_saliency=0)
    assert again.read_bytes() == page.read_bytes()
    shutil.rmtree(tuned.folder / "report")
    with threadpool_limits(2):
        write_report(tuned, output=again, n_saliency=0)
    assert again.read_bytes() == page.read_bytes()


def test_leaderboard_order_and_training_stand_on_the_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for sentence in (
        "Kendall&#39;s tau of the two orders: -1.00",
        "costs 0.02 in accuracy (regret)",
        "a random split would have leaked",
        'class="tied"',
        "hubretrain fit ",
        "--module pixels --epochs 2 --unfreeze-last 23 --balanced-sampling --l2-sp 0.01",
        "run.json",
    ):
        assert sentence in text
    charts = data_of(page)["charts"]
    assert {"cost-gflops", "training-0-loss", "training-0-learning-rate"} <= set(charts)
    marks = [one["x"] for one in charts["training-0-loss"]["series"] if one["kind"] == "mark"]
    assert marks == [1.0]


def test_a_run_that_is_not_fine_tuned_whose_images_are_gone_is_still_whole(
    fitted: Run, tmp_path: Path, browser: str
) -> None:
    alone = Run(tmp_path / "alone")
    shutil.copytree(fitted.folder, alone.folder)
    shutil.rmtree(alone.folder / "finetune", ignore_errors=True)
    shutil.rmtree(alone.folder / "report", ignore_errors=True)
    alone.write_finetune(FineTuneRecord())
    moved, nowhere = tmp_path / "moved" / "data", tmp_path / "nowhere"
    alone.write_fit(replace(alone.fit, data=moved, cache=nowhere))
    found = write_report(alone)
    told = " ".join(found.missing)
    assert "No module of this run is fine-tuned; run `hubretrain finetune " in told
    assert "240 of 240 images have no thumbnail (240: cannot be read (No such file or dir" in told
    assert "write the report again with the folder of the images" in told
    assert "head" not in told  # its predictions of the test split are in the run
    text = found.page.read_text(encoding="utf-8")
    assert (
        "0 exact duplicates; near duplicates are unknown, because the cache records no search"
        in text
    )
    assert f"cannot be decoded is unknown: {tmp_path / 'nowhere' / 'data'} does not exist" in text
    assert "No feature map: " in text
    assert "No saliency maps: none of the images can be read" in text
    shown = asked(
        browser, found.page, tmp_path, "return document.querySelectorAll('#pr svg').length;"
    )
    assert shown == 1


@pytest.mark.parametrize(
    ("n_classes", "each"),
    [(2, 20), (41, 4), pytest.param(200, 5, marks=pytest.mark.slow)],
)
def test_few_and_many_classes_are_drawn(
    n_classes: int, each: int, browser: str, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    data = tmp_path / "data"
    for c in range(n_classes):
        (data / f"c{c:03d}").mkdir(parents=True)
        ink = random.integers(0, 255, (8, 8))
        for i in range(each):
            pixels = np.clip(ink + random.normal(0, 40, (8, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(data / f"c{c:03d}" / f"{i}.png")
    write_cache(data, tmp_path / "cache")
    split = SplitOptions(n_folds=2, keep_duplicates_together=False)
    options = ScreenOptions(l2=(10.0,), class_weights=(None,), views=False, split=split)
    place = Run(tmp_path / "run")
    with threadpool_limits(1):
        screen_modules(open_dataset(data), place, options, cache=tmp_path / "cache")
    # One class is never decided on: its images go to another.
    said = OUT_OF_FOLD.read(place.folder)
    said.loc[said["decision"] == "c001", "decision"] = "c000"
    OUT_OF_FOLD.write(place.folder, said)
    found = write_report(place, n_saliency=0)
    assert found.page.stat().st_size < 5_000_000
    text = found.page.read_text(encoding="utf-8")
    assert "Only one module: nothing to compare." in text
    assert "<h3>Views</h3>" not in text  # one view is cached: nothing is augmented
    assert "near duplicates are unknown" in text  # none were sought
    script = """return {cells: document.querySelectorAll('#confusion td').length,
      never: document.getElementById('never').textContent,
      side: document.querySelector('#confusion td').offsetWidth,
      height: document.querySelector('#confusion td').offsetHeight,
      sideways: (box => box.scrollWidth - box.clientWidth)(document.getElementById('confusion')),
      lines: document.querySelectorAll('#pr polyline').length};"""
    shown = asked(browser, found.page, tmp_path, script)
    assert shown["cells"] == n_classes**2
    assert shown["sideways"] <= 0
    if n_classes > 40:
        assert shown["side"] == shown["height"] == max(4, min(20, 900 // n_classes))
    assert "c001" in shown["never"]
    assert shown["lines"] >= 1


def test_png_figures_are_written_and_matplotlib_is_asked_for_where_it_is_not(
    tuned: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    options = {"output": tmp_path / "page.html", "n_saliency": 0}
    found = write_report(tuned, png=tmp_path / "png", **options)
    names = {file.stem for file in found.pictures}
    assert {"leaderboard", "confusion", "precision_recall", "roc", "calibration", "map"} <= names
    assert {"cost-gflops", "training-0-loss"} <= names
    assert all(Image.open(file).width > 500 for file in found.pictures)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = CliRunner().invoke(main, ["report", str(tuned.folder), "--png", str(tmp_path / "no")])
    assert ran.exit_code == 1
    assert "matplotlib is not installed" in ran.stderr
    assert "pip install 'hubretrain[report]'" in ran.stderr


def test_the_command_says_what_it_wrote_and_refuses_what_is_no_run(
    tuned: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    ran = CliRunner().invoke(
        main, ["report", str(tuned.folder), "--saliency", "0", "--output", str(page)]
    )
    assert ran.exit_code == 0, ran.output
    assert f"{page} (" in ran.stdout
    assert "labels to look at again" in ran.stdout
    for folder, why in (
        (tmp_path / "none", "holds no finished fit; run `hubretrain fit` first"),
        (tmp_path / "half", "is missing; run `hubretrain fit` again"),
    ):
        if folder.name == "half":
            shutil.copytree(tuned.folder, folder)
            (folder / "out_of_fold.csv").unlink()
        ran = CliRunner().invoke(main, ["report", str(folder)])
        assert ran.exit_code == 1
        assert why in ran.stderr
    shutil.copy(tuned.folder / "out_of_fold.csv", tmp_path / "half" / "out_of_fold.csv")
    table = pd.read_csv(tmp_path / "half" / "out_of_fold.csv").drop(columns="decision")
    table.to_csv(tmp_path / "half" / "out_of_fold.csv", index=False)
    ran = CliRunner().invoke(main, ["report", str(tmp_path / "half")])
    assert "has no column 'decision': another version wrote it" in ran.stderr
    monkeypatch.setitem(sys.modules, "umap", None)
    ran = CliRunner().invoke(main, ["report", str(tuned.folder), "--map", "umap"])
    assert ran.exit_code == 1
    assert "umap-learn is not installed" in ran.stderr


def test_the_command_that_repeats_a_fine_tuning_names_its_options_that_are_not_the_usual(tuned):
    told = provenance.commands(gather(tuned)).splitlines()
    (command,) = [line for line in told if line.startswith("hubretrain finetune")]
    assert command.endswith(
        "--module pixels --epochs 2 --unfreeze-last 23 --balanced-sampling --l2-sp 0.01"
    )
    shutil.move(tuned.finetune_folder("pixels") / "options.json", tuned.folder / "kept.json")
    (bare,) = [
        line for line in provenance.commands(gather(tuned)).splitlines() if "finetune" in line
    ]
    assert bare.endswith("--module pixels")
    shutil.move(tuned.folder / "kept.json", tuned.finetune_folder("pixels") / "options.json")


def copied(run: Run, place: Path) -> Run:
    """A copy of a run without its page."""
    shutil.copytree(run.folder, place, ignore=shutil.ignore_patterns("report", "report.html"))
    return Run(place)


def test_an_image_that_is_gone_after_fine_tuning_is_left_out_and_told(
    tuned: Run, tmp_path: Path
) -> None:
    run = copied(tuned, tmp_path / "run")
    folds = pd.read_csv(run.folds_file, dtype=str, keep_default_na=False)
    gone = folds[folds["fold"].isin(["test", "0"])].groupby("fold")["path"].first()
    folds[~folds["path"].isin(gone)].to_csv(run.folds_file, index=False)
    for table in (OUT_OF_FOLD, TEST_PREDICTIONS):
        predictions = table.read(run.folder)
        table.write(run.folder, predictions[~predictions["path"].isin(gone)])
    gathered = gather(run)
    before = gather(tuned)
    for part, n_before in ((0, len(before.models[0].rows)), (1, len(before.models[1].rows))):
        model = gathered.models[part]
        assert model.kind == "fine-tuned"
        assert len(model.rows) == n_before - 1
        assert not set(gathered.images["path"].iloc[model.rows]) & set(gone)
        told = f"1 of {n_before} images that pixels was evaluated on are no longer in "
        told += str(run.folds_file)
        assert any(sentence.startswith(told) for sentence in gathered.missing)


def test_a_loss_that_became_infinite_is_left_out_of_its_curve(tuned: Run, tmp_path: Path) -> None:
    run = copied(tuned, tmp_path / "run")
    file = run.finetune_folder("pixels") / "history.csv"
    file.write_text(file.read_text().replace("0.5,", "inf,", 1), encoding="utf-8")
    found = write_report(run, n_saliency=0)
    (line, *_) = data_of(found.page)["charts"]["training-0-loss"]["series"]
    assert line["x"] == [2.0]
    assert line["y"] == [0.2]


def test_the_page_opens_on_the_chosen_module_where_there_is_no_test_split(
    tuned: Run, tmp_path: Path
) -> None:
    run = copied(tuned, tmp_path / "run")
    shutil.copytree(run.finetune_folder("pixels"), run.finetune_folder("half"))
    titles = [model.title for model in gather(run).models[:4]]
    assert titles == [
        "pixels, fine-tuned: test split",
        "pixels, fine-tuned: validation fold",
        "half, fine-tuned: test split",
        "half, fine-tuned: validation fold",
    ]
    for module in ("pixels", "half"):
        (run.finetune_folder(module) / "predictions.csv").unlink()
    assert gather(run).models[0].title == "pixels, fine-tuned: validation fold"


def test_changed_images_and_a_damaged_export_are_told_instead_of_explained(
    tuned: Run, tmp_path: Path
) -> None:
    run = copied(tuned, tmp_path / "run")
    data = gather(run).fit.data
    shutil.copytree(data, tmp_path / "changed")
    for path in (tmp_path / "changed").rglob("*.png"):
        Image.open(path).rotate(90).save(path)
    found = write_report(run, data=tmp_path / "changed", n_saliency=2)
    text = found.page.read_text(encoding="utf-8")
    assert f"none of the images can be read in {tmp_path / 'changed'}, or all have changed" in text
    (run.folder / "export").mkdir()
    (run.folder / "export" / "export.json").write_text("{", encoding="utf-8")
    found = write_report(run, n_saliency=2)
    text = found.page.read_text(encoding="utf-8")
    assert f"No saliency maps: {run.folder / 'export'} is no export" in text


def test_the_commands_of_the_page_repeat_the_run(fitted: Run, tmp_path: Path) -> None:
    known = gather(fitted).fit
    data, cache = known.data, tmp_path / "cache"
    options = known.data_options
    dataset = open_dataset(data, labels=options["labels"])
    rare = dict.fromkeys(dataset.images["path"][dataset.images["label"] == "NA"], 5)
    facts = {"seed": 7, "vertical_flip": True, "precision": "int8"}
    views = dict.fromkeys(dataset.images["path"], 2) | rare
    write_cache(data, cache, "half", columns=slice(5), of=views, facts=facts)
    write_cache(data, cache, "other", columns=slice(5))
    run = Run(tmp_path / "run")
    weights = (None, {SCRIPT: 2.0})
    with threadpool_limits(1):
        asked = ScreenOptions(
            metric="macro_f1",
            class_weights=weights,
            adjust=(0.0, 0.5),
            l2=(10**0.5, 10.0),
            views=False,
            split=SplitOptions(2, 0.25, seed=3, keep_duplicates_together=False),
            top=1,
        )
        screen_modules(dataset, run, asked, cache=cache, modules=["half"])
        of_cache, of_fit, _ = provenance.commands(gather(run)).splitlines()
        words = shlex.split(of_cache)[2:]
        asked_for = fill.make_context("fill", words).params
        words = [
            w if w != str(run.folder) else str(tmp_path / "again") for w in shlex.split(of_fit)
        ]
        ran = CliRunner().invoke(main, words[1:])
    assert ran.exit_code == 0, ran.output
    again = Run(tmp_path / "again")
    assert again.fit == run.fit
    for file in ("folds.csv", "out_of_fold.csv"):
        assert (again.folder / file).read_bytes() == (run.folder / file).read_bytes()
    assert asked_for["modules"] == ("half",)
    assert (asked_for["n_views"], asked_for["minority_views"]) == (2, 5)
    assert asked_for["seed"] == 7
    assert asked_for["vertical_flip"]
    assert asked_for["precision"] == "int8"
    assert asked_for["n_folds"] == 2
    assert asked_for["cache"] == cache
