from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data import digests as digests_file
from hubretrain.data.dataset import open_dataset
from hubretrain.data.images.augmentation import Augmentation
from hubretrain.data.images.decoding import decode, view
from hubretrain.data.images.reading import Reading
from hubretrain.data.options import TableOptions
from hubretrain.errors import CacheError, DataError, EngineError, ModuleError
from hubretrain.extraction import CacheOptions
from hubretrain.extraction.cache import cache_bottlenecks, shared_seconds
from hubretrain.modules import resolve
from tests.samples import encoded, write_digits, write_module, write_pooled
from tests.tolerances import assert_same_features


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path / "digits", 60)


def run(digits, module, folder, **options):
    (result,) = cache_bottlenecks(
        open_dataset(digits),
        [resolve(str(module))],
        CacheOptions(**{"engine": "tensorflow", **options}),
        cache=folder,
    )
    return result


def test_features_are_those_of_the_module_called_by_hand(digits, small_module, tmp_path):
    import tensorflow_hub as hub

    file = run(digits, small_module, tmp_path / "cache", n_views=2, seed=3).file
    module = hub.load(str(small_module))
    with Bottlenecks(file) as bottlenecks:
        for row in (0, 31, 59):
            path, sha256 = bottlenecks.paths[row], bottlenecks.sha256s[row]
            image = decode((digits / path).read_bytes())
            for v, draw in ((0, None), (1, Augmentation().draw(sha256, 1, 3))):
                pixels = view(image, 8, draw)[None].astype(np.float32) / 255
                expected = module(pixels).numpy()[0]
                assert_same_features(bottlenecks.view(v)[row], expected, module.variables)


def test_a_second_run_computes_nothing_and_imports_no_tensorflow(digits, small_module, tmp_path):
    run(digits, small_module, tmp_path / "cache")
    script = (
        "import sys; from pathlib import Path\n"
        "from hubretrain.extraction.cache import cache_bottlenecks\n"
        "from hubretrain.data.dataset import open_dataset; from hubretrain.modules import resolve\n"
        "data, modules = open_dataset(sys.argv[1]), [resolve(sys.argv[2])]\n"
        "results = cache_bottlenecks(data, modules, cache=Path(sys.argv[3]))\n"
        "print(results[0].n_computed, 'tensorflow' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, digits, small_module, tmp_path / "cache"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["0", "False"]


def test_the_file_is_bit_equal_whatever_the_order_of_work(digits, small_module, tmp_path):
    straight = run(digits, small_module, tmp_path / "one", n_views=3)
    kept = tmp_path / "kept"
    shutil.move(digits / "1", kept)
    (digits / "1").mkdir()
    first = sorted(kept.iterdir())[0]
    shutil.copy2(first, digits / "1")
    run(digits, small_module, tmp_path / "two", n_views=1)
    shutil.rmtree(digits / "1")
    shutil.move(kept, digits / "1")
    grown = run(digits, small_module, tmp_path / "two", n_views=3)
    assert grown.n_computed < 60 * 3
    assert grown.file.read_bytes() == straight.file.read_bytes()


def test_an_edited_image_is_computed_anew_and_a_moved_one_is_not(digits, small_module, tmp_path):
    run(digits, small_module, tmp_path / "cache", n_views=2)
    images = sorted((digits / "0").iterdir())
    images[0].rename(digits / "2" / "moved.png")
    pixels = np.asarray(decode(images[1].read_bytes())).copy()
    pixels[0, 0] = 7
    images[1].write_bytes(encoded(pixels))
    assert run(digits, small_module, tmp_path / "cache", n_views=2).n_computed == 2


def test_a_hundred_new_images_cost_a_hundred_passes_per_view(digits, small_module, tmp_path):
    run(digits, small_module, tmp_path / "cache", n_views=3)
    random = np.random.default_rng(0)
    for i in range(100):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (digits / "012"[i % 3] / f"new{i}.png").write_bytes(encoded(pixels))
    grown = run(digits, small_module, tmp_path / "cache", n_views=3)
    assert (grown.n_images, grown.n_computed) == (160, 300)


def test_several_modules_in_one_run_equal_one_run_each(digits, small_module, tmp_path):
    other = write_module(tmp_path / "other", size=12, n_features=3, seed=1)
    data = open_dataset(digits)
    both = cache_bottlenecks(
        data,
        [resolve(str(small_module)), resolve(str(other))],
        CacheOptions(n_views=2, engine="tensorflow"),
        cache=tmp_path / "both",
    )
    for together, module in zip(both, (small_module, other), strict=True):
        alone = run(digits, module, tmp_path / "alone", n_views=2)
        assert together.file.read_bytes() == alone.file.read_bytes()


def test_images_with_the_same_content_share_a_row(digits, small_module, tmp_path):
    shutil.copy(next((digits / "0").iterdir()), digits / "1" / "copy.png")
    assert run(digits, small_module, tmp_path / "cache").n_images == 60


def test_what_is_too_large_is_computed_once_the_limit_allows_it(digits, small_module, tmp_path):
    (digits / "0" / "large.png").write_bytes(encoded(np.zeros((20, 20, 3), np.uint8)))
    module, options = resolve(str(small_module)), CacheOptions(n_views=2, engine="tensorflow")
    results = []
    for max_pixels in (399, 399, None, None):
        dataset = open_dataset(digits, table=TableOptions(max_pixels=max_pixels))
        (result,) = cache_bottlenecks(dataset, [module], options, cache=tmp_path / "cache")
        results.append((result.n_computed, result.n_quarantined))
        if result.n_quarantined:
            reason = pd.read_csv(result.quarantine)["reason"].item()
            assert reason == "20 x 20 pixels; at most 399 are read"
    assert results == [(120, 1), (0, 1), (2, 0), (0, 0)]
    with Bottlenecks(result.file) as bottlenecks:
        assert not bottlenecks.todo().any()
        assert bottlenecks.verify() == []


def test_bits_of_deep_images_are_recorded_and_others_need_a_new_cache(
    digits, small_module, tmp_path
):
    levels = (np.arange(64).reshape(8, 8) * 64).astype(np.uint16)
    for path in digits.rglob("*.png"):
        path.write_bytes(encoded(np.roll(levels, int(path.stem))))
    module, options = resolve(str(small_module)), CacheOptions(n_views=1, engine="tensorflow")
    for bits in (12, 16):
        dataset = open_dataset(digits, table=TableOptions(bits=bits))
        (result,) = cache_bottlenecks(dataset, [module], options, cache=tmp_path / str(bits))
        with Bottlenecks(result.file) as bottlenecks:
            assert bottlenecks.attributes.get("bits", 16) == bits
            image = decode((digits / bottlenecks.paths[5]).read_bytes(), Reading(bits))
            pixels = view(image, 8)[None].astype(np.float32) / 255
            import tensorflow_hub as hub

            loaded = hub.load(str(small_module))
            expected = loaded(pixels).numpy()[0]
            assert_same_features(bottlenecks.view(0)[5], expected, loaded.variables)
    with pytest.raises(CacheError, match="bits"):
        cache_bottlenecks(dataset, [module], options, cache=tmp_path / "12")


def test_a_broken_image_is_quarantined_and_the_rest_goes_on(digits, small_module, tmp_path):
    (digits / "0" / "broken.png").write_bytes(b"no image")
    whole = encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), "JPEG")
    (digits / "1" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    result = run(digits, small_module, tmp_path / "cache", n_views=2)
    assert (result.n_images, result.n_computed, result.n_quarantined) == (62, 120, 2)
    assert result.n_rows == 120
    table = pd.read_csv(tmp_path / "cache" / "digits" / "quarantine.csv")
    assert table["path"].tolist() == ["0/broken.png", "1/cut.jpg"]
    assert table["reason"].tolist()[0] == "no image of a known type"
    assert "truncated" in table["reason"].tolist()[1]
    assert run(digits, small_module, tmp_path / "cache", n_views=2).n_computed == 0
    (digits / "0" / "broken.png").unlink()
    (digits / "1" / "cut.jpg").write_bytes(whole)
    fixed = run(digits, small_module, tmp_path / "cache", n_views=2)
    assert (fixed.n_computed, fixed.n_quarantined) == (2, 0)
    assert not (tmp_path / "cache" / "digits" / "quarantine.csv").exists()


def test_strict_stops_at_a_broken_image_and_names_it(digits, small_module, tmp_path):
    (digits / "0" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0/broken.png: no image of a known type; fix or remove"):
        run(digits, small_module, tmp_path / "cache", strict=True)


def test_strict_names_a_broken_image_that_an_earlier_run_left_out(digits, small_module, tmp_path):
    (digits / "0" / "broken.png").write_bytes(b"no image")
    assert run(digits, small_module, tmp_path / "cache").n_quarantined == 1
    with pytest.raises(DataError, match=r"0/broken.png: no image of a known type; fix or remove"):
        run(digits, small_module, tmp_path / "cache", strict=True)


def test_when_no_image_can_be_decoded_that_is_an_error(tmp_path, small_module):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / "d" / name).parent.mkdir(parents=True)
        (tmp_path / "d" / name).write_bytes(name.encode())
    with pytest.raises(DataError, match=r"none of its 2 images can be decoded"):
        run(tmp_path / "d", small_module, tmp_path / "cache")


def test_other_augmentation_or_seed_is_refused_and_view_0_survives_overwriting(
    digits, small_module, tmp_path
):
    run(digits, small_module, tmp_path / "cache", n_views=2)
    with pytest.raises(CacheError, match=r"seed = 0, and 1 is required now"):
        run(digits, small_module, tmp_path / "cache", n_views=2, seed=1)
    again = run(digits, small_module, tmp_path / "cache", n_views=2, seed=1, overwrite=True)
    assert again.n_computed == 60


def test_a_module_with_nan_features_is_refused_and_a_feature_map_is_averaged(digits, tmp_path):
    nan = write_module(tmp_path / "nan", give="nan")
    with pytest.raises(ModuleError, match=r"gives NaN or infinite features for ordinary images"):
        run(digits, nan, tmp_path / "cache")
    feature_map = write_module(tmp_path / "map", give="map")
    assert run(digits, feature_map, tmp_path / "cache", layers="last").n_features == 8


def test_a_module_changed_in_place_is_refused_by_its_cache(digits, tmp_path):
    module = write_module(tmp_path / "module", seed=1)
    run(digits, module, tmp_path / "cache")
    shutil.rmtree(module)
    write_module(module, seed=2)
    with pytest.raises(CacheError, match=r"made with module_sha256 = \w{64}, and \w{64} is req"):
        run(digits, module, tmp_path / "cache")


SIGNALLED = """
import os, sys
from hubretrain.bottlenecks import BottleneckWriter
from hubretrain.cli import main
write, n_left, number = BottleneckWriter.write, int(sys.argv.pop(1)), int(sys.argv.pop(1))
def write_and_count(*arguments):
    global n_left
    write(*arguments)
    n_left -= 1
    if n_left == 0:
        os.kill(os.getpid(), number)
BottleneckWriter.write = write_and_count
main()
"""


def run_signalled(command, n_writes, number):
    """Run a command line that sends itself a signal after so many batches are written."""
    arguments = [sys.executable, "-c", SIGNALLED, str(n_writes), str(int(number))]
    return subprocess.run([*arguments, *command.split()], capture_output=True, text=True)


def test_killed_again_and_again_the_cache_ends_bit_equal(digits, small_module, tmp_path):
    straight = run(digits, small_module, tmp_path / "straight", n_views=40)
    command = f"cache {digits} --module {small_module} --views 40 --engine tensorflow"
    command += f" --cache {tmp_path / 'killed'}"
    file = tmp_path / "killed" / "digits" / "small.h5"
    done = []
    for n_writes in (1, 3):
        ran = run_signalled(command, n_writes, signal.SIGKILL)
        assert ran.returncode == -signal.SIGKILL, ran.stderr
        with Bottlenecks(file) as bottlenecks:
            done.append(2400 - int(bottlenecks.todo().sum()))
    assert 0 < done[0] < done[1] < 2400
    subprocess.run([sys.executable, "-m", "hubretrain", *command.split()], check=True)
    assert file.read_bytes() == straight.file.read_bytes()


def test_views_of_a_real_module_do_not_depend_on_what_shares_their_batch(real_models, tmp_path):
    from hubretrain.extraction.engines import TensorFlowEngine
    from hubretrain.modules.backbone import Backbone

    engine = TensorFlowEngine(Backbone(resolve(str(real_models / "mobilenet_v2_035_224"))))
    random = np.random.default_rng(0)
    images = list(random.integers(0, 256, (48, 224, 224, 3), dtype=np.uint8))
    together = engine(images)
    for i in (0, 1, 30, 47):
        assert np.array_equal(engine([images[i]])[0], together[i])
    assert np.array_equal(engine(images[::-1])[::-1], together)


def test_views_cut_by_tensorflow_in_batches_give_nearly_the_same_features(
    digits, small_module, tmp_path
):
    options = {"n_views": 3, "augmentation": Augmentation(rotate90=True, hue=0.1)}
    one = run(digits, small_module, tmp_path / "one", **options)
    other = run(digits, small_module, tmp_path / "other", augment_on="gpu", **options)
    with Bottlenecks(one.file) as on_cpu, Bottlenecks(other.file) as on_gpu:
        assert str(on_gpu.attributes["resize"]).endswith("TensorFlow")
        for v in range(3):
            assert np.allclose(on_gpu.view(v)[:], on_cpu.view(v)[:], atol=0.02)
            assert not np.array_equal(on_gpu.view(v)[:], np.zeros_like(on_gpu.view(v)[:]))
    again = run(digits, small_module, tmp_path / "other", **options)  # auto: as it was begun
    assert again.n_computed == 0
    with pytest.raises(CacheError, match=r"made with resize = .*TensorFlow, and .* is required"):
        run(digits, small_module, tmp_path / "other", augment_on="cpu", **options)


def test_openvino_does_not_cut_views(digits, small_module, tmp_path):
    pytest.importorskip("openvino")
    with pytest.raises(EngineError, match=r"`augment_on=gpu` needs the TensorFlow engine"):
        run(digits, small_module, tmp_path / "one", augment_on="gpu", engine="openvino")


def test_another_engine_is_taken_up_where_it_began_and_refused_when_asked_for(
    digits, pooled_module, tmp_path
):
    pytest.importorskip("openvino")
    one = run(digits, pooled_module, tmp_path / "one", engine="openvino")
    assert run(digits, pooled_module, tmp_path / "one", engine="auto", n_views=5).n_computed == 60
    with Bottlenecks(one.file) as bottlenecks:
        attributes = bottlenecks.attributes
        assert (attributes["engine"], attributes["precision"]) == ("openvino", "f32")
    with pytest.raises(CacheError, match=r"made with engine = openvino, and tensorflow is req"):
        run(digits, pooled_module, tmp_path / "one")
    other = run(digits, pooled_module, tmp_path / "other")
    with Bottlenecks(one.file) as bottlenecks, Bottlenecks(other.file) as expected:
        assert np.allclose(bottlenecks.view(3)[:], expected.view(3)[:], rtol=1e-4, atol=1e-5)


def test_ctrl_c_keeps_what_is_finished_and_says_so(digits, small_module, tmp_path):
    command = f"cache {digits} --module {small_module} --views 40 --engine tensorflow"
    ran = run_signalled(f"{command} --cache {tmp_path / 'cache'}", 2, signal.SIGINT)
    assert ran.returncode == 130, ran.stderr
    assert "interrupted; completed work is kept" in ran.stderr
    assert "Traceback" not in ran.stderr
    file = tmp_path / "cache" / "digits" / "small.h5"
    with Bottlenecks(file) as bottlenecks:
        assert 0 < bottlenecks.todo().sum() < 60 * 40
    assert not file.with_name(".small.h5.lock").exists()


def test_modules_cached_together_share_the_time_by_what_each_computed(digits, tmp_path):
    assert shared_seconds(10.0, [1.0, 4.0, 0.0]) == [2.0, 8.0, 0.0]
    assert shared_seconds(3.0, [6.0]) == [3.0]  # two passes at a time
    assert shared_seconds(0.0, [0.0, 0.0]) == [0.0, 0.0]
    modules = [resolve(str(write_pooled(tmp_path / f"pooled{size}", size))) for size in (8, 32)]
    results = cache_bottlenecks(
        open_dataset(digits),
        modules,
        CacheOptions(n_views=4, engine="tensorflow"),
        cache=tmp_path / "cache",
    )
    passes = pd.read_csv(results[0].file.parent / "passes.csv").set_index("module")
    assert passes["n_forward"].to_dict() == {"pooled8": 240, "pooled32": 240}
    assert (passes["seconds"] > 0).all()


def test_a_wrong_digit_in_the_table_of_digests_costs_one_run(digits, small_module, tmp_path):
    cache = tmp_path / "cache"
    first = run(digits, small_module, cache)
    with Bottlenecks(first.file) as bottlenecks:
        expected = {s: bottlenecks.rows([s])[0] for s in bottlenecks.sha256s}
    paths = open_dataset(digits).images["path"].tolist()
    right = [hashlib.sha256((digits / path).read_bytes()).hexdigest() for path in paths]
    wrong = [("0" if right[0][0] != "0" else "1") + right[0][1:], *right[1:]]
    stamps = digests_file._stamps([str(digits / path) for path in paths])
    table = first.file.parent / "digests.csv"
    digests_file._write(table, paths, stamps, wrong, time.time_ns() + 10**10)
    with pytest.raises(CacheError, match=r"1 images could not be read"):
        run(digits, small_module, cache)
    again = run(digits, small_module, cache)
    with Bottlenecks(again.file) as bottlenecks:
        assert set(bottlenecks.sha256s) == set(expected)
        assert all(np.array_equal(bottlenecks.rows([s])[0], expected[s]) for s in expected)
