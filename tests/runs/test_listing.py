"""The list of runs, and the removal of one: of a run, of all of it, and of nothing else."""

from __future__ import annotations

import pandas as pd
import pytest

from hubretrain.errors import LockedError, RunError
from hubretrain.locks import in_use, only_writer
from hubretrain.runs import LEADERBOARD, Run, list_runs, remove_run
from tests.runs.test_run import module_record
from tests.samples import fit_record, record_files


def write_run(folder):
    run = Run(folder)
    row = dict.fromkeys(LEADERBOARD.columns, "") | {"module": "small", "kind": "module", "rank": 1}
    row |= dict.fromkeys(("l2", "adjust", "n_members", "averaged_views", "shortlist"), 1)
    row |= {"tied": False, "accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95}
    LEADERBOARD.write(folder, pd.DataFrame([row]))
    record = fit_record(metric="accuracy", modules={"small": module_record()})
    run.write_fit(record)
    record_files(run)
    return run


def test_runs_are_listed_with_their_best_and_damaged_ones_with_the_reason(tmp_path):
    write_run(tmp_path / "runs" / "one")
    (tmp_path / "runs" / "notes").mkdir()
    broken = tmp_path / "runs" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    listed = {summary.name: summary for summary in list_runs(tmp_path / "runs")}
    assert set(listed) == {"one", "broken"}
    one = listed["one"]
    assert (one.data, one.modules, one.best) == ("digits", ("small",), "small")
    assert (one.metric, one.estimate) == ("accuracy", (0.9, 0.8, 0.95))
    files = [path for path in one.folder.rglob("*") if path.is_file()]
    assert one.n_bytes == sum(path.stat().st_size for path in files) > 0
    assert "broken/run.json is damaged" in listed["broken"].problem
    assert list_runs(tmp_path / "nowhere") == []


def test_a_run_is_removed_and_what_is_not_its_own_stays(tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "outside").mkdir()
    (run.folder / "report").symlink_to(tmp_path / "outside")
    (run.folder / "heads").mkdir()
    (run.folder / "heads" / "small.h5").write_bytes(b"heads")
    (run.folder / "notes.txt").write_text("mine")
    assert remove_run(run) == ("notes.txt",)
    assert [path.name for path in run.folder.iterdir()] == ["notes.txt"]
    assert (tmp_path / "outside").is_dir()
    whole = write_run(tmp_path / "whole")
    assert remove_run(whole) == ()
    assert not whole.folder.exists()


def test_what_is_no_run_is_not_touched(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "folds.csv").write_text("path\n")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "run.json").write_text('{"fit": 1}')
    (tmp_path / "link").symlink_to(write_run(tmp_path / "run").folder)
    before = sorted(tmp_path.rglob("*"))
    for name in ("data", "foreign", "link", "nowhere"):
        with pytest.raises(RunError):
            remove_run(Run(tmp_path / name))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_in_use_is_refused(tmp_path):
    run = write_run(tmp_path / "run")
    finetuning = run.finetune_folder("small")
    finetuning.mkdir(parents=True)
    for held in (
        in_use(run.screened_folder),
        only_writer(finetuning),
        only_writer(run.record_file),
    ):
        before = sorted(run.folder.rglob("*"))
        with held, pytest.raises(LockedError, match="is being written by process"):
            remove_run(run)
        assert sorted(run.folder.rglob("*")) == before
    with in_use(run.screened_folder), in_use(run.screened_folder):
        pass
    assert remove_run(run) == ()
