"""The plan of a fine-tuning for the time that is granted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from hubretrain.data.dataset import open_dataset
from hubretrain.errors import RunError
from hubretrain.finetuning import FineTuneOptions, plan_modules, saved_options
from hubretrain.finetuning.plan import MOST_EPOCHS, Sizes, choose, duration, plan_of
from hubretrain.finetuning.schedule import Speed, n_small_epochs, schedule_for, smaller
from tests.finetuning.runs import copied, tune

SIZES = Sizes(train=3200, validation=800, test=1000)
POLICY = schedule_for(SIZES.train).epochs  # 15
SPEED = Speed(step=0.02, small_step=0.01, evaluation=0.005)
PLAIN = FineTuneOptions(interpolate=False)
EPOCH, SMALL_EPOCH = 0.02 * 3200 + 0.005 * 800, 0.01 * 3200 + 0.005 * 800
REST = 2 * 0.005 * 1800 + 0.005 * 800  # head and result on both parts, and epoch 0


def planned(seconds, speed=SPEED, options=PLAIN, module="a"):
    return plan_of(module, speed, SIZES, replace(options, hours=seconds / 3600), 7.0)


def test_without_a_time_the_plan_is_the_training_policy():
    plan = plan_of("a", SPEED, SIZES, PLAIN, 7.0)
    assert plan.epochs == POLICY
    assert not plan.options.small_first
    assert plan.seconds_per_epoch == pytest.approx(EPOCH)
    assert plan.seconds == pytest.approx(7 + REST + POLICY * EPOCH)
    whole = plan_of("a", SPEED, SIZES, FineTuneOptions(epochs=4, warmup_head=1), 0.0)
    assert whole.seconds == pytest.approx(REST + 4 * 0.005 * 800 + 5 * EPOCH)


def test_there_are_as_many_epochs_as_take_no_more_time():
    for n in (POLICY, POLICY + 1, MOST_EPOCHS * POLICY):
        seconds = 7 + REST + n * EPOCH
        assert planned(seconds + 1).epochs == n
        assert planned(seconds + 1).seconds == pytest.approx(seconds)
    assert planned(10 * seconds).epochs == MOST_EPOCHS * POLICY


def test_where_the_time_is_short_the_first_epochs_are_on_smaller_images():
    n_small = n_small_epochs(POLICY)
    seconds = 7 + REST + n_small * SMALL_EPOCH + (POLICY - n_small) * EPOCH
    plan = planned(seconds + 1)
    assert (plan.epochs, plan.options.small_first, plan.is_enough) == (POLICY, True, True)
    assert plan.seconds == pytest.approx(seconds)
    of_one_size = planned(seconds + 1, replace(SPEED, small_step=None))
    assert not of_one_size.options.small_first
    assert of_one_size.epochs == int((seconds + 1 - 7 - REST) / EPOCH)
    assert not of_one_size.is_enough


def test_a_frozen_part_whose_activations_are_kept_is_evaluated_once_for_each_view():
    speed = Speed(step=0.002, small_step=None, evaluation=0.005, n_cached_views=4)
    options = replace(PLAIN, epochs=6)
    plan = plan_of("a", speed, SIZES, options)
    of_views = 4 * 0.005 * 3200
    assert plan.seconds == pytest.approx(REST + of_views + 6 * (0.002 * 3200 + 0.005 * 800))


def test_a_last_training_on_all_folds_is_planned_for_as_many_epochs():
    options = FineTuneOptions(epochs=6, warmup_head=1, all_folds=True)
    plan = plan_of("a", SPEED, SIZES, options)
    once = plan_of("a", SPEED, SIZES, replace(options, all_folds=False))
    again = 7 * 0.02 * (3200 + 800) + 2 * 0.005 * 1000
    assert plan.seconds == pytest.approx(once.seconds + again)


def test_the_costliest_network_that_the_time_is_enough_for_is_trained():
    large = Speed(step=0.06, small_step=None, evaluation=0.015)
    hours = 2000 / 3600
    plans = [planned(2000), planned(2000, large, module="large")]
    assert choose(plans, hours).module == "a"
    plans = [planned(9000), planned(9000, large, module="large")]
    assert choose(plans, 9000 / 3600).module == "large"
    plans = [planned(400), planned(400, large, module="large")]
    assert not any(plan.is_enough for plan in plans)
    assert choose(plans, 400 / 3600).module == "a"


def test_a_time_that_is_not_enough_for_one_epoch_is_refused():
    with pytest.raises(RunError, match=r"`hours` is 0\.01, but one epoch of a, .* grant 0\.03"):
        choose([planned(36)], 0.01)


def test_smaller_images_have_half_the_area_and_a_multiple_of_the_stride():
    assert [smaller(size) for size in (8, 224, 240, 299, 380)] == [6, 160, 160, 224, 256]
    assert [n_small_epochs(epochs) for epochs in (1, 2, 3, 9)] == [0, 1, 2, 6]


def test_times_are_said_in_few_digits():
    words = [duration(seconds) for seconds in (0.04, 9.9, 42.4, 600, 9000)]
    assert words == ["0.0 s", "9.9 s", "42 s", "10 minutes", "2.5 hours"]


def test_a_plan_writes_nothing_and_trains_nothing(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    options = FineTuneOptions(hours=1.0, batch_size=16)
    (plan,) = plan_modules(
        open_dataset(fitted / "digits"), run, ["small"], cache=fitted / "cache", options=options
    )
    assert plan.seconds_per_small_epoch is not None  # the module takes any size
    assert plan.epochs >= 1
    assert not run.finetune_folder("small").exists()


def test_what_was_planned_is_resumed_though_steps_take_another_time(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    folder = run.finetune_folder("small")
    folder.mkdir(parents=True)
    planned = FineTuneOptions(hours=1.0, epochs=2, batch_size=16, learning_rate=3e-3)
    planned.save(folder)  # and was killed before the first checkpoint
    result = tune(fitted, run, "small", epochs=None, hours=1.0)
    assert result.history["epoch"].tolist() == [0, 1, 2]
    assert saved_options(folder) == planned
    shutil.rmtree(folder)
    tune(fitted, run, "small", epochs=None, hours=0.02, batch_size=64)
    options = json.loads((folder / "options.json").read_text())
    state = json.loads((folder / "checkpoint" / "state.json").read_text())
    assert options["hours"] == 0.02
    assert options["epochs"] == state["base_epochs"] >= 1
