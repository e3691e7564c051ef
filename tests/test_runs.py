"""`run.json` as records: what is written is read, what is damaged is one sentence."""

from __future__ import annotations

import json
import os

import pytest

from hubretrain.errors import RunError
from hubretrain.runs import (
    FineTunedModuleRecord,
    FineTuneRecord,
    ModuleRecord,
    OrderRecord,
    Run,
    latest_run,
)
from tests.samples import fit_record

NAMES = ["2024", "None", "NA", "nan", "1e5", " x ", "", 'a "b"', "two\nlines", "a\rb", "true"]


def module_record(**changes):
    attributes = {"module": "small", "handle": "/modules/small", "module_sha256": "0" * 64}
    attributes |= {"image_size": 8, "value_range": "[-1.0, 1]", "n_views": 3, "engine": "litert"}
    return ModuleRecord.of(attributes | changes)


def tuned_record(**changes):
    figures = {"accuracy": (0.5, 0.25, 0.75)}
    values = {"test": {}, "head_test": {}, "validation": figures, "head_validation": figures}
    values |= {
        "adjust": 0.5,
        "priors": (0.75, 0.25),
        "identity": {"images": "abc"},
        "kept_epoch": 3,
        "temperature": 1.25,
        "uncalibrated_log_loss": {"validation": 0.5},
    }
    return FineTunedModuleRecord(**(values | changes))


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run")


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_is_read_as_it_was_written_whatever_its_names(run, name):
    record = fit_record(
        class_names=(name, "other"),
        shortlist=(name,),
        modules={name: module_record(module=name)},
        class_weights=("none", {name: 2.0}),
        test_looked_at=({name: "identity"},),
        data_options={"labels": None},
    )
    assert not run.is_fitted
    run.write_fit(record)
    assert run.is_fitted
    assert run.fit == record
    assert run.fit.module(name).value_range == (-1.0, 1.0)


def test_fine_tuning_is_read_as_it_was_written_and_leaves_the_fit_as_it_is(run):
    run.write_fit(fit_record())
    fit = run.fit
    order = OrderRecord(("a", "2024"), ("2024", "a"), None, 0.25, "accuracy", (-0.25, 0.5))
    record = FineTuneRecord({"2024": tuned_record()}, "2024", order, None, ({"2024": "identity"},))
    run.write_finetune(record)
    assert (run.fit, run.finetune) == (fit, record)
    run.write_fit(fit_record(seed=1))
    assert run.finetune == record


def test_a_run_that_was_not_fine_tuned_has_an_empty_record(run):
    assert run.finetune == FineTuneRecord()
    assert (dict(run.finetune.modules), run.finetune.chosen) == ({}, None)


def test_a_metric_that_is_no_number_is_read_as_none(run):
    run.write_finetune(
        FineTuneRecord({"a": tuned_record(test={"top_3": (1.0, float("nan"), 1.0)})})
    )
    estimate, low, high = run.finetune.modules["a"].test["top_3"]
    assert (estimate, high) == (1.0, 1.0)
    assert low != low


def test_a_run_without_a_fit_says_what_to_run(run):
    with pytest.raises(RunError, match=r"holds no finished fit; run `hubretrain fit` first\.$"):
        _ = run.fit


def test_a_module_that_was_not_fitted_is_named_with_those_that_were(run):
    record = fit_record(modules={"a": module_record(), "b": module_record()})
    with pytest.raises(RunError, match=r"^c was not fitted in this run \(there are: a, b\)"):
        record.module("c")


def test_unknown_keys_are_left_unread(run):
    run.write_fit(fit_record())
    stages = json.loads(run.record_file.read_text())
    stages["fit"]["of_a_later_version"] = 1
    stages["another stage"] = []
    run.record_file.write_text(json.dumps(stages))
    assert run.fit == fit_record()
    run.write_finetune(FineTuneRecord())
    assert json.loads(run.record_file.read_text())["another stage"] == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "expected a JSON object"),
        ('{"fit": 3}', "not subscriptable"),
        ('{"fit": []}', "indices"),
        ('{"fit": {"data": "x"}}', "it lacks 'data_options'"),
        ("\udc80", "surrogates|decode"),
    ],
)
def test_a_damaged_or_foreign_record_is_one_sentence(run, text, reason):
    run.folder.mkdir()
    run.record_file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=reason) as raised:
        _ = run.fit
    message = str(raised.value)
    assert message.startswith(f"{run.record_file} cannot be read as a record of this version (")
    assert message.endswith("remove it and run `hubretrain fit` again.")
    assert "\n" not in message


def test_a_damaged_part_of_a_record_is_one_sentence(run):
    run.write_fit(fit_record(modules={"a": module_record()}))
    whole = run.record_file.read_text()
    for old, new in (('"[-1.0, 1]"', '"wide"'), ('"seed": 0', '"seed": "x"'), ("8,", "null,")):
        assert old in whole
        run.record_file.write_text(whole.replace(old, new, 1))
        with pytest.raises(RunError, match="cannot be read as a record of this version"):
            _ = run.fit


def test_the_latest_run_is_the_one_written_last(tmp_path):
    with pytest.raises(RunError, match=r"runs/ holds no run; run `hubretrain fit` first"):
        latest_run(tmp_path / "runs")
    for name, seconds in (("old", 100), ("new", 200)):
        run = Run(tmp_path / "runs" / name)
        run.write_fit(fit_record())
        os.utime(run.record_file, (seconds, seconds))
    assert latest_run(tmp_path / "runs").name == "new"
