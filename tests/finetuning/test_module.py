"""One module, trained: what chooses the export, and which weights are kept."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hubretrain.data.splitting import read_folds
from hubretrain.evaluation import calibrate
from hubretrain.export import Export
from hubretrain.heads import ModuleHeads
from hubretrain.modules import resolve
from hubretrain.runs import HISTORY, PREDICTIONS, TEST_PREDICTIONS, VALIDATION_PREDICTIONS, Run
from tests.finetuning.heads import give_head, pixels_of, weaken
from tests.finetuning.runs import copied, tune
from tests.finetuning.test_trainer import tensors
from tests.samples import at_temperature, record_files


@pytest.fixture(scope="module")
def relabelled(fitted, tmp_path_factory):
    """The data of the fitted run, but every label of the test split is another one."""
    folder = tmp_path_factory.mktemp("relabelled")
    for name in ("digits", "cache"):
        shutil.copytree(fitted / name, folder / name)
    folds = pd.read_csv(fitted / "run" / "folds.csv", dtype=str)
    for path in folds.loc[folds["fold"] == "test", "path"]:
        label, name = path.split("/")
        other = folder / "digits" / str((int(label) + 1) % 3) / name
        (folder / "digits" / path).rename(other)
    return folder


def test_the_export_is_chosen_on_the_validation_fold_where_the_test_split_says_the_opposite(
    fitted, relabelled, tmp_path
):
    run = copied(fitted, tmp_path)
    stored = resolve(str(fitted / "small"))
    images = pixels_of(fitted, pd.read_csv(run.folds_file)["path"], stored.image_size)
    give_head(run, stored, images, "softmax", has_layers=False)  # it knows nothing
    result = tune(relabelled, run, epochs=2, learning_rate=1e-4)
    assert result.kept_epoch > 0
    # The temperature is of the validation fold, too: on the test split nearly all would be wrong.
    temperature, folder = result.temperature, run.finetune_folder("small")
    group_of = read_folds(run.folds_file).set_index("sha256")["group"]
    of_fold, of_test = (
        calibrate(
            at_temperature(table[["p(0)", "p(1)", "p(2)"]].to_numpy(), 1 / temperature),
            table["label"].astype(int).to_numpy(),
            group_of[table["sha256"]].to_numpy(),
            may_sharpen=False,
        )
        for table in (VALIDATION_PREDICTIONS.read(folder), PREDICTIONS.read(folder))
    )
    assert temperature == pytest.approx(of_fold.temperature, rel=1e-3)
    assert temperature != pytest.approx(of_test.temperature, rel=0.02)
    exported, values = run.finetune.exported, run.finetune.exported.on_validation
    assert exported.name == "small, head" == max(values, key=values.get)
    assert values["small, head"] > values["small, fine-tuned"] + 0.2
    assert Export.open(run.export_folder).manifest["fine_tuned"] is False
    of_head = TEST_PREDICTIONS.read(run.folder)
    other = (of_head["label"].astype(int) + 1) % 3
    assert result.test["accuracy"][0] > (of_head["decision"].astype(int) == other).mean() + 0.1


def test_training_starts_at_the_temperature_of_its_head(fitted, tmp_path):
    """A head of a large penalty, made by hand: without its temperature it tells nothing apart."""
    run = copied(fitted, tmp_path)
    heads = ModuleHeads.load(run.heads_file("small"))
    head, scale = replace(heads.warm_start, kind="softmax"), 1e-3
    flat = replace(
        head,
        weight=head.weight * scale,
        bias=head.bias * scale,
        calibration=replace(head.calibration, temperature=head.calibration.temperature * scale),
    )
    for name, one in (("usual", head), ("flat", flat)):
        of_one = Run(shutil.copytree(run.folder, tmp_path / name))
        replace(heads, warm_start=one).save(of_one.heads_file("small"), {})
        record_files(of_one)
        tune(fitted, of_one, epochs=1)
    usual, of_flat = (
        HISTORY.read(Run(tmp_path / name).finetune_folder("small")) for name in ("usual", "flat")
    )
    columns = ["loss", "validation_loss", "validation_accuracy", "validation_metric"]
    assert usual["validation_loss"][0] < 0.8 * np.log(3)
    np.testing.assert_allclose(usual[columns], of_flat[columns], rtol=2e-3)


def test_with_averaged_weights_the_averages_are_evaluated_and_kept(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    weaken(run, "small")
    assert tune(fitted, run, epochs=1, ema=0.9).kept_epoch == 1
    checkpoint = run.finetune_folder("small") / "checkpoint"
    (last,), (best,) = (list(checkpoint.glob(f"{name}_*.index")) for name in ("at", "best"))
    of_last, of_best = (tensors(path.with_suffix("")) for path in (last, best))
    (kept,) = (value for value in of_best.values() if value.shape == (32, 12))
    dense = {name: value for name, value in of_last.items() if value.shape == (32, 12)}
    (average,) = (value for name, value in dense.items() if "averages" in name)
    (raw,) = (value for name, value in dense.items() if name.startswith("variables/"))
    np.testing.assert_array_equal(kept, average)
    assert np.abs(kept - raw).max() > 1e-5
