from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hubretrain.report.report import write_report
from hubretrain.report.run_data import gather
from hubretrain.report.sections import training
from hubretrain.runs import Run
from tests.browsing import asked
from tests.report.samples import copied, data_of


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


def test_a_model_of_all_folds_is_named_beside_its_figures(tuned: Run) -> None:
    run_data = gather(tuned)
    record = run_data.finetune.modules["pixels"]

    def kept_epoch_of(**changes: Any) -> str:
        modules = {"pixels": replace(record, **changes)}
        changed = replace(run_data, finetune=replace(run_data.finetune, modules=modules))
        return str(training(changed, {})["fine_tuned"][0]["kept_epoch"])

    assert kept_epoch_of(kept_epoch=2) == "2"
    assert kept_epoch_of(kept_epoch=2, all_folds=True) == "2, trained again on all folds"
    assert kept_epoch_of(kept_epoch=0) == "none improved on the head"


def test_a_run_that_is_not_fine_tuned_whose_images_are_gone_is_still_whole(
    fitted: Run, tmp_path: Path, browser: str
) -> None:
    alone = copied(fitted, tmp_path / "alone")
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
