from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.cli import main
from hubretrain.data import open_dataset
from hubretrain.data.splitting import TEST, read_folds
from hubretrain.errors import CacheError, HeadError
from hubretrain.extraction import CacheOptions, Cluster, cache_bottlenecks, slice_file
from hubretrain.modules import resolve
from hubretrain.racing import RaceOptions, race_modules
from hubretrain.racing.record import ALIVE, FAILED, NOT_REACHED
from hubretrain.runs import Run
from tests.samples import encoded, write_digits, write_module, write_pooled


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits, a module that sees something, one that sees less, and one that gives NaN."""
    folder = tmp_path_factory.mktemp("race")
    write_digits(folder / "digits", 120)
    write_pooled(folder / "good", seed=5)
    write_module(folder / "poor", n_features=1)
    write_module(folder / "broken", give="nan")
    return folder


OPTIONS = RaceOptions(first=40, engine="tensorflow")


def race(folder, work, names=("good", "poor"), options=OPTIONS, **more):
    return race_modules(
        open_dataset(folder / "digits"),
        [str(folder / name) for name in names],
        work / "run",
        options,
        cache=work / "cache",
        **more,
    )


@pytest.fixture(scope="module")
def raced(folder, tmp_path_factory):
    work = tmp_path_factory.mktemp("raced")
    seen = []
    return work, race(folder, work, on_rung=seen.append), seen


def test_a_race_grows_until_one_module_is_left_or_all_images_are_compared(folder, raced):
    _, result, seen = raced
    sizes = [rung.n_images for rung in result.rungs]
    assert 40 <= sizes[0] < 50
    assert sizes == sorted(sizes)
    assert len(seen) == len(sizes)
    assert result.end == (
        "one module is left" if len(result.alive) == 1 else "all images were compared"
    )
    assert result.shortlist[0] == str(folder / "good")
    table = result.table()
    assert set(table["status"]) <= {"alive", "left out"}
    assert (table["low"] <= table["estimate"]).all()
    assert (table["estimate"] <= table["high"]).all()


def test_no_image_of_the_test_split_takes_part(folder, raced):
    work, result, _ = raced
    folds = read_folds(Run(work / "run").folds_file)
    test = set(folds.loc[folds["fold"] == TEST, "sha256"])
    assert len(test) > 10
    for name in ("good", "poor"):
        with Bottlenecks(slice_file(work / "cache" / "digits", name)) as bottlenecks:
            assert not test & set(bottlenecks.sha256s)
            assert bottlenecks.n_images >= result.rungs[0].n_images


def test_the_cache_goes_on_from_the_slices_and_holds_what_it_would_without(folder, raced, tmp_path):
    work, result, _ = raced
    shutil.copytree(work, tmp_path / "work")
    dataset, modules = open_dataset(folder / "digits"), [resolve(str(folder / "good"))]
    options = CacheOptions(n_views=2, engine="tensorflow")
    file = slice_file(tmp_path / "work" / "cache" / "digits", "good")
    with Bottlenecks(file) as bottlenecks:
        n_there = bottlenecks.n_images
    assert n_there == result.rungs[-1].n_images or len(result.alive) == 1
    (continued,) = cache_bottlenecks(dataset, modules, options, cache=tmp_path / "work" / "cache")
    (whole,) = cache_bottlenecks(dataset, modules, options, cache=tmp_path / "other")
    assert continued.n_computed == whole.n_computed - n_there == 240 - n_there
    with Bottlenecks(continued.file) as one, Bottlenecks(whole.file) as other:
        assert one.attributes == other.attributes
        for view in range(2):
            assert np.array_equal(one.view(view, "all")[:], other.view(view, "all")[:])
    assert not file.exists()


def test_other_settings_take_nothing_from_the_slices(folder, raced, tmp_path):
    work, _, _ = raced
    shutil.copytree(work, tmp_path / "work")
    dataset, modules = open_dataset(folder / "digits"), [resolve(str(folder / "good"))]
    options = CacheOptions(n_views=1, engine="openvino")
    (result,) = cache_bottlenecks(dataset, modules, options, cache=tmp_path / "work" / "cache")
    assert result.n_computed == 120


def test_features_that_are_cached_are_not_computed_again(folder, raced, tmp_path):
    _, first, _ = raced
    dataset, modules = open_dataset(folder / "digits"), [resolve(str(folder / "good"))]
    options = CacheOptions(n_views=1, engine="tensorflow")
    cache_bottlenecks(dataset, modules, options, cache=tmp_path / "cache")
    result = race(folder, tmp_path)
    assert not slice_file(tmp_path / "cache" / "digits", "good").exists()
    good = str(folder / "good")
    assert result.rungs[0].estimates[good] == first.rungs[0].estimates[good]


def test_a_race_that_is_stopped_and_resumed_is_the_race(folder, raced, tmp_path):
    _, whole, _ = raced

    def stop(_):
        raise KeyboardInterrupt

    names = [str(folder / "good"), str(folder / "poor")]
    with pytest.raises(KeyboardInterrupt):
        race(folder, tmp_path, on_rung=stop)
    resumed = race(folder, tmp_path)
    assert resumed.modules == tuple(names)
    of = [(rung.n_images, rung.estimates, rung.errors, rung.alive) for rung in resumed.rungs]
    assert of == [(r.n_images, r.estimates, r.errors, r.alive) for r in whole.rungs]
    again = []
    assert race(folder, tmp_path, on_rung=again.append).rungs == resumed.rungs
    assert not again


def test_a_module_that_fails_is_left_out_with_its_reason(folder, tmp_path):
    result = race(folder, tmp_path, names=("broken", "good", "nowhere"))
    status = {standing.module: standing for standing in result.standings()}
    assert "NaN" in status[str(folder / "broken")].reason
    assert status[str(folder / "nowhere")].status == FAILED
    assert status[str(folder / "good")].status == ALIVE
    assert result.shortlist == (str(folder / "good"),)


def test_without_a_module_that_can_be_used_there_is_one_sentence(folder, tmp_path):
    with pytest.raises(CacheError, match=r"none of the modules can be used: .*broken.* NaN"):
        race(folder, tmp_path, names=("broken",))


def test_a_time_that_is_too_short_for_one_module_is_one_sentence(folder, tmp_path):
    options = RaceOptions(first=40, minutes=1e-6, engine="tensorflow")
    with pytest.raises(HeadError, match="`minutes` is 1e-06, which was not enough for one module"):
        race(folder, tmp_path, options=options)


def test_modules_that_the_time_did_not_reach_are_compared_once_there_is_more(
    folder, raced, tmp_path
):
    work, whole, _ = raced
    shutil.copytree(work, tmp_path / "work")
    good, poor = whole.modules
    first = whole.rungs[0]
    estimates, errors = {good: first.estimates[good]}, {good: first.errors[good]}
    rung = replace(first, estimates=estimates, errors=errors, alive=(good,))
    short = replace(whole, rungs=(rung,), end="the time is over")
    assert [standing.status for standing in short.standings()] == [ALIVE, NOT_REACHED]
    short.save(Run(tmp_path / "work" / "run"))
    longer = race(folder, tmp_path / "work")
    assert poor in longer.rungs[0].estimates
    assert [rung.alive for rung in longer.rungs] == [rung.alive for rung in whole.rungs]


def test_an_image_that_cannot_be_decoded_is_left_out_for_all(folder, tmp_path):
    shutil.copytree(folder / "digits", tmp_path / "digits")
    broken = tmp_path / "digits" / "0" / "broken.png"
    broken.write_bytes(encoded(np.zeros((8, 8, 3), np.uint8))[:40])
    dataset = open_dataset(tmp_path / "digits")
    names = [str(folder / "good"), str(folder / "poor")]
    options = RaceOptions(first=200, engine="tensorflow")
    result = race_modules(dataset, names, tmp_path / "run", options, cache=tmp_path / "cache")
    folds = read_folds(Run(tmp_path / "run").folds_file)
    is_test = folds.loc[folds["path"] == "0/broken.png", "fold"].iloc[0] == TEST
    n_validated = int((folds["fold"] >= 0).sum())
    assert result.rungs[-1].n_images == n_validated - (not is_test)


def test_the_command_prints_where_modules_stand_and_what_comes_next(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["screen", str(folder / "digits"), "-m", str(folder / "poor"), "--first", "40"]
    words += ["-m", str(folder / "good"), "--engine", "tensorflow"]
    ran = CliRunner().invoke(main, words, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "2 modules compared" in ran.output
    assert f"Next: hubretrain cache {folder / 'digits'} --module {folder / 'good'}" in ran.output
    ran = CliRunner().invoke(main, [*words, "--json"], catch_exceptions=False)
    record = json.loads(ran.stdout)
    assert record["shortlist"][0] == str(folder / "good")
    assert {row["module"] for row in record["modules"]} == {
        str(folder / n) for n in ("good", "poor")
    }


@pytest.mark.parametrize(
    ("text", "minutes"), [("10m", 10), ("90s", 1.5), ("1h30m", 90), ("2.5", 2.5), ("1.5h", 90)]
)
def test_a_budget_is_a_time(text, minutes):
    from hubretrain.cli.screen import Duration

    assert Duration().convert(text, None, None) == pytest.approx(minutes)


def test_a_budget_that_is_no_time_is_a_usage_error():
    ran = CliRunner().invoke(main, ["screen", "--budget", "soon"])
    assert ran.exit_code == 2
    assert "'soon' is no time such as 10m" in ran.output


@pytest.mark.slow
def test_workers_on_ray_give_the_race_of_one_process(folder, raced, tmp_path):
    pytest.importorskip("ray")
    _, alone, _ = raced
    names = [str(folder / "good"), str(folder / "poor")]
    dataset = open_dataset(folder / "digits")
    words = {"cache": tmp_path / "cache", "cluster": Cluster(2, None)}
    together = race_modules(dataset, names, tmp_path / "run", OPTIONS, **words)
    assert [rung.estimates for rung in together.rungs] == [rung.estimates for rung in alone.rungs]
