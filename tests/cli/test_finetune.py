from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from hubretrain.cli import main
from hubretrain.cli.finetune import _show
from hubretrain.finetuning import FineTuneResult
from tests.cli.test_cli import invoke
from tests.samples import write_digits, write_module


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "0"], "'0' is neither a number of epochs, at least 1, nor +N"),
        (["--epochs", "²"], "'²' is neither a number of epochs"),
        (["--resume", "--epochs", 20], "keeps its length; leave out --epochs, or add epochs"),
        (["--top", 2, "--epochs", "+1"], "--epochs +1 resumes one module; name it with --m"),
        (["--epochs", "+x"], "'+x' is neither a number of epochs"),
        (["--resume", "--restart"], "--resume and --restart exclude each other"),
        (["--top", 2, "--module", "a"], "--top chooses the modules"),
        (["--resume", "--batch-size", 8, "--crop", 1.0], "leave out --batch-size, --crop."),
        (["--epochs", "+2", "--l2-sp", 1], "(--resume, --epochs +N) keeps its options"),
        (["--hours", 1, "--epochs", 3], "--hours plans the number of epochs"),
        (["--hours", 1, "--top", 2], "--hours trains one module"),
        (["--hours", 1, "-m", "a", "-m", "b"], "--hours trains one module"),
        (["--dry-run", "--resume"], "--dry-run plans a training from its beginning"),
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(
    tmp_path, monkeypatch, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(main, ["finetune", *map(str, arguments)])
    assert ran.exit_code == 2
    assert sentence in " ".join(ran.output.split())


def test_it_is_shown_of_which_model_the_figures_are(capsys):
    history = pd.DataFrame({"epoch": [0, 1], "kept": [False, True]})
    result = FineTuneResult("m", history, {}, {}, {}, {}, Path("export"))
    _show(result, "accuracy")
    trained = capsys.readouterr().out
    assert trained.startswith("m: epoch 1 of 1 is kept.\nTemperature")
    _show(replace(result, all_folds=True), "accuracy")
    assert (
        "trained once more, on all folds: the figures of the test split" in capsys.readouterr().out
    )
    _show(replace(result, history=history.assign(kept=[True, False])), "accuracy")
    assert (
        "the fitted head, which is kept. Figures here are of it without" in capsys.readouterr().out
    )


@pytest.mark.slow
def test_the_best_modules_are_tuned_in_turn_and_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "data" / "digits", 120)
    for seed in (5, 6):
        write_module(tmp_path / f"small{seed}", n_features=12, seed=seed)
    invoke("cache", "--module", "small5", "--module", "small6", "--views", 1)
    invoke("fit", "--heads", "softmax,logistic")
    tuned = invoke("finetune", "--top", 2, "--epochs", 1, "--unfreeze-last", 1)
    shown = " ".join(tuned.stdout.split())
    assert "on the validation fold the screening order" in shown
    assert "Kendall's tau" in shown
    assert re.search(r"On the validation fold, accuracy: .*; .*, head \d+\.\d", shown)
    assert re.search(r"runs/digits/export/ holds (the ensemble|small[56])", shown)
    assert re.search(r"trunk\.h5 \([\d.]+ kB\) for further epochs", shown)
    dry = invoke("finetune", "--hours", 0.05, "--dry-run").stdout
    assert re.search(r"^small[56]: \d+ epochs? of about .*; .* in all\.$", dry, re.M)
    assert dry.endswith("Next: hubretrain finetune --hours 0.05\n")
    more = invoke("finetune", "--module", "small5", "--epochs", "+2")
    assert "hubretrain: epoch 3: loss" in more.stderr
    assert "epoch 1: loss" not in more.stderr
    refused = invoke("finetune", "--module", "small5", "--epochs", 2, code=1)
    assert "with unfreeze_last = 1, but --unfreeze-last is None; continue" in refused.stderr
    resumed = invoke("finetune", "--resume")  # the latest
    assert "small5: " in resumed.stdout
    assert "epoch 3: loss" not in resumed.stderr
    diverged = invoke(
        *("finetune", "--module", "small6", "--restart", "--learning-rate", 1e35), code=1
    )
    assert "small6: the loss became" in diverged.stderr
    assert "runs/digits/export/ " in diverged.stdout
