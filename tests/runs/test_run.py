"""`run.json` as records: what is written is read, what is damaged is one sentence."""

from __future__ import annotations

import itertools
import json
import os

import pytest

from hubretrain.errors import RunError
from hubretrain.files import read_record, write_record
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
    stages = read_record(run.record_file)
    stages["fit"]["of_a_later_version"] = 1
    stages["another stage"] = []
    write_record(run.record_file, stages)
    assert run.fit == fit_record()
    run.write_finetune(FineTuneRecord())
    assert json.loads(run.record_file.read_text())["another stage"] == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "truncated"),
        (b"[]", "Expected 'object', got 'array'"),
        (b"\x80", "malformed"),
        (b'{"fit": 3}', "its content is not the one of its sha256"),
        ({"fit": 3}, "Expected 'object', got 'int'"),
        ({"fit": []}, "Expected 'object', got 'array'"),
        ({"fit": {"data": "x", "modules": {}}}, "missing required field 'data_options'"),
    ],
)
def test_a_damaged_or_foreign_record_is_one_sentence(run, content, reason):
    run.folder.mkdir()
    if isinstance(content, bytes):
        run.record_file.write_bytes(content)
    else:
        write_record(run.record_file, content)
    with pytest.raises(RunError, match=reason) as raised:
        _ = run.fit
    message = str(raised.value)
    assert message.startswith(f"{run.record_file} is damaged or of another version (")
    assert message.endswith("remove it and run `hubretrain fit` again.")
    assert "\n" not in message


def test_another_digit_in_a_record_is_one_sentence(run):
    run.write_fit(fit_record(seed=12345))
    run.record_file.write_text(run.record_file.read_text().replace("12345", "12346"))
    with pytest.raises(RunError, match=r"\(its content is not the one of its sha256\)"):
        _ = run.fit


def write_fit_of(run, text, **changes):
    with run.writing_fit() as written:
        for name in changes.pop("names", ("folds.csv", "leaderboard.csv", "heads/a.h5")):
            path = written.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} {text}")
        run.publish_fit(written, fit_record(**changes))


def test_the_files_of_a_fit_replace_those_of_the_one_before_and_leave_all_others(run):
    write_fit_of(run, "first", names=("folds.csv", "ensemble.json", "heads/gone.h5"))
    run.write_finetune(FineTuneRecord({"a": tuned_record()}, "a"))
    (run.folder / "notes.txt").write_text("mine")
    write_fit_of(run, "second", seed=1)
    left = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*")}
    assert left == {"folds.csv", "leaderboard.csv", "heads", "heads/a.h5", "run.json", "notes.txt"}
    assert (run.fit.seed, run.finetune.chosen) == (1, "a")
    assert run.checked(run.heads_file("a")).read_text() == "heads/a.h5 second"


def test_a_file_of_the_fit_that_is_another_or_gone_names_the_command(run):
    write_fit_of(run, "first")
    for path in (run.folds_file, run.heads_file("a")):
        assert run.checked(path) == path
        path.write_text("other")
        with pytest.raises(RunError, match=r"is damaged or another one than .* `hubretrain fit`"):
            run.checked(path)
        path.unlink()
        with pytest.raises(RunError, match=r"is missing; run `hubretrain fit` again"):
            run.checked(path)
    (run.folder / "ensemble.json").write_text("of another run")
    with pytest.raises(RunError, match=r"ensemble\.json is damaged or another one"):
        run.checked_ensemble()


def test_a_fit_that_is_killed_at_any_rename_is_the_old_one_or_the_new_one(tmp_path):
    """In a process of its own, which ends before the n-th rename of `publish_fit`."""
    outcomes = []
    for n in range(1, 20):
        run = Run(tmp_path / str(n) / "run")
        write_fit_of(run, "first")
        child = os.fork()
        if child == 0:
            end_at_rename(n)
            write_fit_of(run, "second", seed=1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        text = {0: "first", 1: "second"}[run.fit.seed]
        for name in ("folds.csv", "leaderboard.csv", "heads/a.h5"):
            assert run.checked(run.folder / name).read_text() == f"{name} {text}"
        assert not (run.folder / ".fitted").exists()
        outcomes.append((status, text))
        if status == 0:
            break
    assert outcomes[0] == (9, "first")
    assert (9, "second") in outcomes
    assert outcomes[-1] == (0, "second")


def end_at_rename(n):
    """Let this process end itself before its n-th rename."""
    rename, count = os.replace, itertools.count(1)

    def replace(*paths):
        if next(count) == n:
            os._exit(9)
        rename(*paths)

    os.replace = replace


def test_a_damaged_part_of_a_record_is_one_sentence(run):
    run.write_fit(fit_record(modules={"a": module_record()}))
    whole = json.dumps({"fit": json.loads(run.record_file.read_text())["fit"]}, indent=2)
    for old, new in (('"[-1.0, 1]"', '"wide"'), ('"seed": 0', '"seed": "x"'), ("8,", "null,")):
        assert old in whole
        run.record_file.write_text(whole.replace(old, new, 1))
        with pytest.raises(RunError, match="is damaged or of another version"):
            _ = run.fit


def test_the_latest_run_is_the_one_written_last(tmp_path):
    with pytest.raises(RunError, match=r"runs/ holds no run; run `hubretrain fit` first"):
        latest_run(tmp_path / "runs")
    for name, seconds in (("old", 100), ("new", 200)):
        run = Run(tmp_path / "runs" / name)
        run.write_fit(fit_record())
        os.utime(run.record_file, (seconds, seconds))
    assert latest_run(tmp_path / "runs").name == "new"


def test_a_fit_says_that_images_may_have_several_labels_and_of_classes_nothing(run):
    run.write_fit(fit_record(multi_label=True))
    assert run.fit.multi_label
    run.write_fit(fit_record())
    assert not run.fit.multi_label
    assert "multi_label" not in json.loads(run.record_file.read_text())["fit"]
