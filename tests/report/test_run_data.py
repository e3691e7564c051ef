from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from hubretrain.errors import RunError
from hubretrain.report.run_data import gather
from hubretrain.runs import OUT_OF_FOLD, TEST_PREDICTIONS, Run
from tests.report.samples import copied
from tests.samples import record_files


def test_an_image_that_is_gone_after_fine_tuning_is_left_out_and_told(
    tuned: Run, tmp_path: Path
) -> None:
    run = copied(tuned, tmp_path / "run")
    folds = pd.read_csv(run.folds_file, dtype=str, keep_default_na=False)
    gone = folds[folds["fold"].isin(["test", "0"])].groupby("fold")["path"].first()
    folds[~folds["path"].isin(gone)].to_csv(run.folds_file, index=False)
    for table in (OUT_OF_FOLD, TEST_PREDICTIONS):
        predictions = table.read(tuned.folder)
        table.write(run.folder, predictions[~predictions["path"].isin(gone)])
    record_files(run)
    gathered = gather(run)
    before = gather(tuned)
    for part, n_before in ((0, len(before.models[0].rows)), (1, len(before.models[1].rows))):
        model = gathered.models[part]
        assert model.kind == "fine-tuned"
        assert len(model.rows) == n_before - 1
        assert not set(gathered.images["path"].iloc[model.rows]) & set(gone)
        told = f"1 of {n_before} images that pixels was evaluated on are no longer in the "
        told += f"{model.part} of {run.folds_file}"
        assert any(sentence.startswith(told) for sentence in gathered.missing)


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
    with pytest.raises(RunError, match=r"predictions\.csv is missing; run `hubretrain finetune`"):
        gather(run)
    record = run.finetune  # of a run without a test split
    pixels = record.modules["pixels"]
    files = {name: sha256 for name, sha256 in pixels.files.items() if name != "predictions.csv"}
    run.write_finetune(replace(record, modules={"pixels": replace(pixels, files=files)}))
    assert gather(run).models[0].title == "pixels, fine-tuned: validation fold"


def test_the_history_of_a_recorded_fine_tuning_that_is_gone_is_an_error(
    tuned: Run, tmp_path: Path
) -> None:
    run = copied(tuned, tmp_path / "run")
    (run.finetune_folder("pixels") / "history.csv").unlink()
    with pytest.raises(RunError, match=r"history\.csv is missing; run `hubretrain finetune`"):
        gather(run)
    run.write_finetune(replace(run.finetune, modules={}))  # such as of a training in progress
    assert gather(run).histories == {}
