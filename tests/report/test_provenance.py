from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from threadpoolctl import threadpool_limits

from hubretrain.cli import main
from hubretrain.cli.cache import fill
from hubretrain.data import SplitOptions
from hubretrain.data.dataset import open_dataset
from hubretrain.errors import RunError
from hubretrain.files import file_sha256
from hubretrain.report import provenance
from hubretrain.report.run_data import gather
from hubretrain.runs import Run
from hubretrain.screening import ScreenOptions
from hubretrain.screening.fit import screen_modules
from tests.report.samples import SCRIPT, copied
from tests.screening.test_fit import write_cache


def finetune_command(run: Run) -> str:
    (command,) = [
        line
        for line in provenance.commands(gather(run)).splitlines()
        if line.startswith("hubretrain finetune")
    ]
    return command


def test_the_command_that_repeats_a_fine_tuning_names_its_options_that_are_not_the_defaults(
    tuned: Run, tmp_path: Path
) -> None:
    assert finetune_command(tuned).endswith(
        "--module pixels --epochs 2 --unfreeze-last 23 --balanced-sampling --l2-sp 0.01"
    )
    run = copied(tuned, tmp_path / "run")
    options = run.finetune_folder("pixels") / "options.json"
    options.write_text(options.read_text().replace("sha256", "sha255"))
    with pytest.raises(RunError, match=r"options\.json is damaged .* its sha256"):
        finetune_command(run)
    options.unlink()
    with pytest.raises(RunError, match=r"options\.json is missing; .*`restart=True`"):
        finetune_command(run)


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
            layers="last",
            heads=("softmax", "logistic"),
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
    # Of the files, some say how long the work took.
    assert replace(again.fit, files={}) == replace(run.fit, files={})
    for file in ("folds.csv", "out_of_fold.csv"):
        assert (again.folder / file).read_bytes() == (run.folder / file).read_bytes()
    assert asked_for["modules"] == ("half",)
    assert (asked_for["n_views"], asked_for["minority_views"]) == (2, 5)
    assert asked_for["seed"] == 7
    assert asked_for["vertical_flip"]
    assert asked_for["precision"] == "int8"
    assert asked_for["n_folds"] == 2
    assert asked_for["cache"] == cache


def test_the_digest_of_a_damaged_file_is_not_shown_as_the_one_of_the_run(
    fitted: Run, tmp_path: Path
) -> None:
    run = copied(fitted, tmp_path / "run")
    assert dict(provenance.file_digests(run))["heads/pixels.h5"] == file_sha256(
        run.heads_file("pixels")
    )
    run.heads_file("pixels").write_bytes(run.heads_file("pixels").read_bytes()[:-1])
    with pytest.raises(RunError, match=r"pixels\.h5 is damaged or another one than the run rec"):
        provenance.file_digests(run)
    (run.folder / "heads.csv").unlink()
    with pytest.raises(RunError, match=r"heads\.csv is missing; run `hubretrain fit` again"):
        provenance.file_digests(run)
