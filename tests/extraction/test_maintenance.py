from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data.dataset import open_dataset
from hubretrain.errors import CacheError
from hubretrain.extraction import CacheOptions
from hubretrain.extraction.cache import cache_bottlenecks
from hubretrain.extraction.maintenance import (
    cache_status,
    collect_garbage,
    merge_parts,
    verify_files,
)
from hubretrain.extraction.plan import Part, Slice
from hubretrain.modules import resolve
from tests.bottlenecks.samples import edited
from tests.samples import encoded, write_digits, write_module


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path / "digits", 60)


def run(digits, module, folder, part=None, **options):
    (result,) = cache_bottlenecks(
        open_dataset(digits),
        [resolve(str(module))],
        CacheOptions(**{"n_views": 2, "engine": "tensorflow", **options}),
        cache=folder,
        part=part,
    )
    return result


def parts_of(digits, module, folder, n, **options):
    return [run(digits, module, folder, part=Part(i, n), **options).file for i in range(1, n + 1)]


def test_parts_made_apart_merge_into_the_file_of_one_machine(digits, small_module, tmp_path):
    alone = run(digits, small_module, tmp_path / "alone", minority_views=4)
    parts = parts_of(digits, small_module, tmp_path / "apart", 3, minority_views=4)
    with Bottlenecks(parts[0]) as one, Bottlenecks(parts[1]) as two:
        assert not set(one.sha256s) & set(two.sha256s)
    merged, n_images, missing = merge_parts(parts[::-1])
    assert (n_images, missing) == (60, [])
    assert merged == tmp_path / "apart" / "digits" / "small.h5"
    assert merged.read_bytes() == alone.file.read_bytes()


def test_what_a_missing_part_would_hold_is_computed_by_the_next_run(digits, small_module, tmp_path):
    alone = run(digits, small_module, tmp_path / "alone")
    one, _, three = parts_of(digits, small_module, tmp_path / "apart", 3)
    merged, n_images, missing = merge_parts([one, three])
    assert missing == [2]
    finished = run(digits, small_module, tmp_path / "apart")
    assert finished.n_computed == 2 * (60 - n_images)
    assert merged.read_bytes() == alone.file.read_bytes()


def test_parts_that_do_not_belong_together_are_refused(digits, small_module, tmp_path):
    one, two = parts_of(digits, small_module, tmp_path / "a", 2)
    other_seed = run(digits, small_module, tmp_path / "b", part=Part(2, 2), seed=5).file
    with pytest.raises(CacheError, match=r"do not belong together: seed is 0 in the first and 5"):
        merge_parts([one, other_seed])
    half = run(digits, small_module, tmp_path / "c", part=Part(2, 2), dtype="float16").file
    with pytest.raises(CacheError, match=r"5 features of float32 in the first, 5 of float16"):
        merge_parts([one, half])
    other = run(digits, small_module, tmp_path / "a", part=Part(1, 3)).file
    with pytest.raises(CacheError, match=r"the parts are of 2 and of 3; merge parts of one"):
        merge_parts([one, other])
    changed = tmp_path / "changed.h5"
    shutil.copy(one, changed)
    with edited(changed) as file:
        file["view_000"][0, 0] += 1
    with pytest.raises(CacheError, match=r"have different bottlenecks of \d/\d+.png"):
        merge_parts([one, changed], tmp_path / "out.h5")
    with pytest.raises(CacheError, match=r"changed.h5 is not named as a part; name the file"):
        merge_parts([changed])
    merge_parts([one, two])
    with pytest.raises(CacheError, match=r"small.h5 exists; remove it, merge it too"):
        merge_parts([one, two])


def test_a_part_that_is_no_part_is_refused():
    for text in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(CacheError, match=r"`part` is '.*'; expected a number and how"):
            Part.parse(text)
    assert Part.parse("3/16") == Part(3, 16)


def test_verify_finds_a_flipped_bit_and_what_is_not_finished(digits, small_module, tmp_path):
    file = run(digits, small_module, tmp_path / "cache").file
    assert verify_files([file]) == {file: []}
    with h5py.File(file, "r+") as opened:
        opened["view_001"][7, 3] += np.float32(1e-6)
    (wrong,) = verify_files([file])[file]
    damage = (
        "view_001: its bytes are not those that were written; repair it by `hubretrain cache "
        "verify --repair`, then run `hubretrain cache` again"
    )
    assert wrong == damage
    assert run(digits, small_module, tmp_path / "cache").n_computed == 0
    assert verify_files([file])[file] == [damage]  # a run does not certify the damage
    with pytest.raises(CacheError, match=r"small.h5: view_001: its bytes are not those that were"):
        run(digits, small_module, tmp_path / "cache", n_views=3)
    (file.parent / "text.h5").write_text("no HDF5")
    sentences = verify_files([file.parent / "text.h5", tmp_path / "nothing.h5"])
    assert "is damaged (its first bytes are no digest)" in sentences[file.parent / "text.h5"][0]
    assert "does not exist" in sentences[tmp_path / "nothing.h5"][0]


def test_what_is_repaired_is_computed_again_by_the_next_run(digits, small_module, tmp_path):
    file = run(digits, small_module, tmp_path / "cache").file
    whole = file.read_bytes()
    with h5py.File(file, "r+") as opened:
        opened["view_001"][7, 3] += np.float32(1e-6)
    (done,) = verify_files([file], repair=True)[file]
    assert done.startswith("view_001 was damaged and is empty now; run the same `hubretrain cache`")
    assert run(digits, small_module, tmp_path / "cache").n_computed == 60
    assert file.read_bytes() == whole
    shutil.copy(file, file.with_name("other.h5"))
    part = run(digits, small_module, tmp_path / "cache", part=Part(1, 2)).file
    faults = verify_files([file, part, file.with_name("other.h5")])
    assert [len(sentences) for sentences in faults.values()] == [0, 0, 1]


def test_status_says_what_the_next_run_would_compute_and_why(digits, small_module, tmp_path):
    cache = tmp_path / "cache"
    run(digits, small_module, cache)
    (clean,) = cache_status(open_dataset(digits), cache).to_dict("records")
    assert (clean["done"], clean["todo"], clean["to_compute"], clean["why"]) == (120, 0, 0, [])
    assert clean["done_by_view"] == [60, 60]
    assert clean["images_per_second"] > 0
    zero = sorted((digits / "0").iterdir())
    zero[0].unlink()
    zero[1].write_bytes(encoded(np.zeros((8, 8, 3), np.uint8)))
    (digits / "1" / "new.png").write_bytes(encoded(np.ones((8, 8, 3), np.uint8)))
    zero[2].rename(digits / "2" / "moved.png")
    (status,) = cache_status(open_dataset(digits), cache).to_dict("records")
    assert (status["new"], status["edited"], status["gone"], status["to_compute"]) == (1, 1, 2, 4)
    assert status["why"] == [
        "1 new images",
        "1 edited images",
        "2 images are gone: their rows drop out",
    ]
    more = cache_status(open_dataset(digits), cache, n_views=3)
    assert more["to_compute"].tolist() == [2 * 3 + 58]
    assert run(digits, small_module, cache, n_views=3).n_computed == 2 * 3 + 58


def test_status_of_a_slice_counts_the_images_that_the_next_run_adds(digits, small_module, tmp_path):
    dataset, cache = open_dataset(digits), tmp_path / "cache"
    taken = Slice(frozenset(dataset.digests(cache)[:40]))
    run(digits, small_module, cache, part=taken)
    (status,) = cache_status(dataset, cache).to_dict("records")
    assert (status["done"], status["to_compute"]) == (80, 40)
    assert status["why"] == ["20 images outside of the slice"]
    assert run(digits, small_module, cache).n_computed == 40


def test_status_names_a_module_whose_file_is_gone(digits, small_module, tmp_path, caplog):
    dataset, cache = open_dataset(digits), tmp_path / "cache"
    for name in ("one", "two"):
        shutil.copytree(small_module, tmp_path / name)
    modules = [resolve(str(tmp_path / name)) for name in ("one", "two")]
    cache_bottlenecks(dataset, modules, CacheOptions(n_views=1), cache=cache)
    assert len(cache_status(dataset, cache)) == 2
    assert "no bottlenecks of" not in caplog.text
    (cache / dataset.name / "two.h5").unlink()
    assert cache_status(dataset, cache)["module"].tolist() == ["one"]
    assert (
        "digits holds no bottlenecks of two, whose forward passes passes.csv lists" in caplog.text
    )


def test_status_knows_that_the_module_is_another_now(digits, tmp_path):
    module = write_module(tmp_path / "module", seed=1)
    run(digits, module, tmp_path / "cache")
    shutil.rmtree(module)
    write_module(module, seed=2)
    (why,) = cache_status(open_dataset(digits), tmp_path / "cache")["why"]
    assert why == ["module is another module now: all of it has to be overwritten"]


def test_garbage_is_what_nothing_needs(digits, small_module, tmp_path):
    cache = tmp_path / "cache"
    file = run(digits, small_module, cache, n_views=4).file
    left = file.with_name(".small.h5.new")
    left.write_bytes(b"x" * 1000)
    for image in sorted((digits / "0").iterdir())[:3]:
        image.unlink()
    data = open_dataset(digits)
    planned = collect_garbage(data, cache, n_views=2, dry_run=True)
    assert [(f, what) for f, what, _ in planned] == [
        (left, "left by a killed run"),
        (file, "3 images that are gone, views 2 to 3"),
    ]
    assert left.exists()
    before = file.stat().st_size
    done = collect_garbage(data, cache, n_views=2)
    assert [what for _, what, _ in done] == [what for _, what, _ in planned]
    assert 0 < done[1][2] == planned[1][2] <= before - file.stat().st_size
    assert not left.exists()
    fresh = run(digits, small_module, tmp_path / "fresh", n_views=2)
    assert file.read_bytes() == fresh.file.read_bytes()
    assert collect_garbage(data, cache, n_views=2) == []


def test_garbage_is_not_looked_for_in_the_cache_of_another_data_set(digits, small_module, tmp_path):
    file = run(digits, small_module, tmp_path / "cache").file
    before = file.read_bytes()
    other = write_digits(tmp_path / "elsewhere" / "digits", 9)
    for image in other.rglob("*.png"):
        image.write_bytes(
            encoded(
                np.random.default_rng(len(image.name)).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            )
        )
    with pytest.raises(CacheError, match=r"holds 60 images of another data set, none of this one"):
        collect_garbage(open_dataset(other), tmp_path / "cache")
    assert file.read_bytes() == before


def test_a_broken_image_is_known_again_when_only_the_file_knew_it(digits, small_module, tmp_path):
    (digits / "0" / "broken.png").write_bytes(b"no image")
    once = run(digits, small_module, tmp_path / "cache")
    before = once.file.read_bytes()
    once.quarantine.unlink()  # as after a kill before it was written, or in a merged file
    again = run(digits, small_module, tmp_path / "cache")
    assert (again.n_computed, again.n_quarantined) == (0, 1)
    assert again.quarantine.exists()
    assert again.file.read_bytes() == before


def test_garbage_is_not_what_another_process_writes(digits, small_module, tmp_path):
    from hubretrain.locks import only_writer

    file = run(digits, small_module, tmp_path / "cache").file
    with only_writer(file):
        assert collect_garbage(open_dataset(digits), tmp_path / "cache") == []


def test_fewer_views_keep_those_that_are_there(digits, small_module, tmp_path):
    four = run(digits, small_module, tmp_path / "cache", n_views=4)
    before = four.file.read_bytes()
    fewer = run(digits, small_module, tmp_path / "cache", n_views=2)
    assert (fewer.n_computed, fewer.n_views) == (0, 4)
    assert fewer.file.read_bytes() == before
