from __future__ import annotations

import h5py
import numpy as np
import pytest

from hubretrain.data.dataset import open_dataset
from hubretrain.errors import ModuleError, RunError
from hubretrain.hdf5 import write_digest_but
from tests.finetuning.runs import copied, tune, write_run
from tests.samples import write_digits, write_module, write_residual


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Two fitted modules: one with a shortcut, one of functions inside functions."""
    from hubretrain.tensorflow import tf

    folder = tmp_path_factory.mktemp("fitted")
    write_digits(folder / "digits", 120)
    write_residual(folder / "residual")
    inner = tf.saved_model.load(str(write_module(folder / "small", size=16)))
    outer = tf.__internal__.tracking.AutoTrackable()
    outer.inner, outer.variables = inner, list(inner.variables)
    outer.trainable_variables = list(inner.variables)
    spec = tf.TensorSpec((None, 16, 16, 3), tf.float32)
    outer.__call__ = tf.function(lambda images: inner(images, False), input_signature=[spec])
    tf.saved_model.save(outer, str(folder / "nested"))
    write_run(folder, folder / "residual", folder / "nested")
    return folder


def test_epochs_on_cached_activations_are_those_on_pixels(fitted, tmp_path):
    histories = []
    for views in (0, 3):
        run = copied(fitted, tmp_path, f"run{views}")
        result = tune(
            fitted, run, module="residual", unfreeze_last=2, trunk_views=views, learning_rate=3e-4
        )
        assert [note.startswith("The frozen part's act") for note in result.notes] == [True][:views]
        assert (run.finetune_folder("residual") / "trunk.h5").exists() == (views > 0)
        histories.append(result.history)
    for name in ("loss", "validation_loss"):
        one, other = (h[name].to_numpy() for h in histories)
        assert np.allclose(one, other, rtol=1e-2, equal_nan=True), (name, one, other)
    assert histories[0]["loss"].iloc[-1] < histories[0]["loss"].iloc[1]


def test_what_is_left_of_a_view_is_computed_and_nothing_twice(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    options = {"module": "residual", "unfreeze_last": 2, "trunk_views": 2}
    tune(fitted, run, epochs=1, **options)
    path = run.finetune_folder("residual") / "trunk.h5"
    with h5py.File(path, "r+") as file:
        assert sorted(file) == ["validation", "view_001"]  # epoch 2's view is not needed yet
        whole = file["view_001"][:]
        assert whole.dtype == np.float16
        file["view_001"][3] = np.nan
        file["view_001"][50] += 1  # in another batch of 48: kept as it is, not computed anew
        file["view_001"].attrs["sha256"] = np.bytes_(b"")
    write_digest_but(path, ["validation", "view_001"])  # as a kill leaves it
    tune(fitted, run, module="residual", resume=True, more_epochs=2)
    with h5py.File(path, "r") as file:
        again = file["view_001"][:]
        assert sorted(file) == ["validation", "view_001", "view_002"]
    assert np.array_equal(again[:48], whole[:48])
    assert np.array_equal(again[50], whole[50] + 1)


@pytest.mark.slow
def test_damaged_activations_are_computed_again(fitted, tmp_path, caplog):
    run = copied(fitted, tmp_path)
    tune(fitted, run, epochs=1, module="residual", unfreeze_last=2, trunk_views=1)
    path = run.finetune_folder("residual") / "trunk.h5"
    sound = path.read_bytes()
    with h5py.File(path, "r") as file:
        view = file["view_001"]
        first, n_bytes, block = (
            view.id.get_offset(),
            view.id.get_storage_size(),
            file.userblock_size,
        )
        whole = view[:]
    # A digit of the block, the header of the HDF5, the values of a view.
    for at in (30, block + 60, first + n_bytes // 2):
        damaged = bytearray(sound)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        tune(fitted, run, module="residual", resume=True, more_epochs=1)
        with h5py.File(path, "r") as file:
            assert np.array_equal(file["view_001"][:], whole)
    assert "view_001 is damaged and computed again" in caplog.text


def test_activations_of_other_facts_are_made_anew(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    options = {"module": "residual", "unfreeze_last": 2, "epochs": 1}
    tune(fitted, run, seed=0, **options)
    path = run.finetune_folder("residual") / "trunk.h5"
    with h5py.File(path, "r") as file:
        before = file["view_001"][:]
    kept = path.read_bytes()
    tune(fitted, run, seed=1, restart=True, **options)
    with h5py.File(path, "r") as file:
        assert not np.array_equal(file["view_001"][:], before)
    path.write_bytes(kept)
    (run.finetune_folder("residual") / "checkpoint" / "state.json").unlink()
    tune(fitted, run, seed=1, **options)
    with h5py.File(path, "r") as file:
        assert not np.array_equal(file["view_001"][:], before)


def test_a_module_that_is_trained_from_its_first_layer_says_so_and_goes_on(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    result = tune(fitted, run, module="nested", unfreeze_last=2, epochs=1)
    (note,) = result.notes
    assert note.startswith("The frozen part runs in each epoch: its activations at ")
    assert note.endswith(" would take more space than the pixels.")
    assert len(result.history) == 2


def test_activations_larger_than_the_pixels_are_not_worth_keeping():
    from hubretrain.finetuning.activation_cache import worth_caching
    from hubretrain.modules.cut import Cut

    def of_shape(*shape):
        return Cut("relu", "Relu", shape, abs, abs)

    for fine in (of_shape(7, 7, 192), of_shape(56, 56, 24)):  # as much as pixels, to the byte
        assert worth_caching(fine, 224) is fine
    with pytest.raises(ModuleError, match=r"activations at relu would take more space than the pi"):
        worth_caching(of_shape(56, 56, 25), 224)


def test_without_room_it_says_how_to_do_without(fitted, tmp_path):
    from hubretrain.finetuning.activation_cache import check_room

    with pytest.raises(OSError, match=r"space|large"):
        check_room(tmp_path / "trunk.h5", 2**60)
    assert list(tmp_path.iterdir()) == []
    run = copied(fitted, tmp_path)
    folder = run.finetune_folder("residual")
    (folder / "trunk.h5").mkdir(parents=True)
    with pytest.raises(RunError, match=r"trunk.h5 cannot be written .*`trunk_views=0`"):
        tune(fitted, run, module="residual", unfreeze_last=2, epochs=1)


def test_several_modules_in_turn_say_whether_the_order_held(fitted, tmp_path):
    from hubretrain.finetuning import best_modules, finetune_modules
    from hubretrain.finetuning.options import FineTuneOptions

    run = copied(fitted, tmp_path)
    names = best_modules(run, 2)
    assert sorted(names) == ["nested", "residual"]
    with pytest.raises(RunError, match=r"`top` is 3, but .* compares 2 modules \(.*choose fewer"):
        best_modules(run, 3)
    data = open_dataset(fitted / "digits")
    tuning = FineTuneOptions(epochs=1, batch_size=16)
    results = finetune_modules(data, run, names, cache=fitted / "cache", options=tuning)
    record = run.finetune
    metric = record.order.metric
    scores = {one.module: one.validation[metric][0] for one in results}
    exported = record.exported
    assert exported.on_validation[exported.name] == max(exported.on_validation.values())
    assert record.chosen == (exported.module if exported.kind == "fine-tuned" else None)
    assert set(scores.values()) <= set(exported.on_validation.values())
    assert sorted(record.modules) == sorted(names)
    assert sorted(record.order.screening) == sorted(names)
    assert record.order.regret >= 0
    import json

    manifest = json.loads((run.export_folder / "export.json").read_text())
    assert manifest["module"] == exported.module
