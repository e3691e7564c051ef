from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data import Quarantine, TableOptions
from hubretrain.data.dataset import open_dataset
from hubretrain.errors import CacheError
from hubretrain.extraction import CacheOptions
from hubretrain.extraction.cache import cache_bottlenecks
from hubretrain.extraction.plan import Part, views_by_class, wanted_rows
from hubretrain.modules import resolve
from tests.samples import write_pixels, write_unbalanced

HAM10000 = {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115}


def labels_of(counts):
    return pd.Series([name for name, n in counts.items() for _ in range(n)])


def test_rarer_classes_get_more_views_smoothly_up_to_the_rarest():
    views = views_by_class(labels_of(HAM10000), 2, 16)
    assert views == {"nv": 2, "mel": 5, "bkl": 5, "bcc": 7, "akiec": 9, "vasc": 14, "df": 16}


def test_views_never_make_a_rare_class_larger_than_the_largest():
    assert views_by_class(labels_of({"a": 100, "b": 90, "c": 50}), 4, 100) == {
        "a": 4,
        "b": 4,
        "c": 8,
    }


@given(
    counts=st.lists(st.integers(1, 3000), min_size=1, max_size=8),
    n_views=st.integers(1, 10),
    more=st.integers(0, 30),
)
def test_views_by_class_stay_in_bounds_and_follow_rarity(counts, n_views, more):
    named = {f"c{i}": n for i, n in enumerate(counts)}
    views = views_by_class(labels_of(named), n_views, n_views + more)
    by_count = sorted(named, key=named.get)
    assert views[by_count[-1]] == n_views
    assert all(n_views <= n <= n_views + more for n in views.values())
    assert [views[name] for name in by_count] == sorted(views.values(), reverse=True)
    largest = max(counts) * n_views
    assert all(named[name] * (n - 0.5) <= largest for name, n in views.items())


def test_fewer_minority_views_than_views_are_refused():
    with pytest.raises(CacheError, match=r"`minority_views` is 2, less than `n_views`, 4; expect"):
        views_by_class(pd.Series(["a", "b"]), 4, 2)


def test_minority_views_are_cached_and_a_relabelled_image_keeps_its_rows(small_module, tmp_path):
    data = open_dataset(write_unbalanced(tmp_path / "data"))
    options, cache = CacheOptions(1, minority_views=4, engine="tensorflow"), tmp_path / "cache"
    (result,) = cache_bottlenecks(data, [resolve(str(small_module))], options, cache=cache)
    assert (result.n_rows, result.n_computed, result.n_views) == (24 + 3 * 4, 36, 4)
    with Bottlenecks(result.file) as cached:
        few = [path.startswith("few") for path in cached.paths]
        assert cached.n_views_of.tolist() == [4 if f else 1 for f in few]
        assert np.isnan(cached.view(3)[:]).all(axis=1).tolist() == [not f for f in few]
        assert cached.verify() == []
        with pytest.raises(CacheError, match=r"has no view 3 of 24 of 27 images"):
            cached.rows(cached.sha256s, 3)
    (tmp_path / "data" / "few" / "0.png").rename(tmp_path / "data" / "many" / "was_few.png")
    again = open_dataset(tmp_path / "data")
    (moved,) = cache_bottlenecks(again, [resolve(str(small_module))], options, cache=cache)
    assert moved.n_computed == 0


def test_float16_halves_the_views_and_stays_close(small_module, tmp_path):
    data, modules = open_dataset(write_unbalanced(tmp_path / "data")), [resolve(str(small_module))]
    files = {}
    for dtype in ("float32", "float16"):
        options = CacheOptions(2, dtype=dtype, engine="tensorflow")
        (result,) = cache_bottlenecks(data, modules, options, cache=tmp_path / dtype)
        files[dtype] = result.file
    with Bottlenecks(files["float32"]) as whole, Bottlenecks(files["float16"]) as half:
        assert half.view(1).dtype == np.float16
        assert half.rows(half.sha256s, 1).dtype == np.float32
        assert np.allclose(half.view(1)[:], whole.view(1)[:], rtol=1e-3, atol=1e-4)
        assert half.verify() == []
    cache, options = tmp_path / "float16", CacheOptions(3, engine="tensorflow")
    (again,) = cache_bottlenecks(data, modules, options, cache=cache)
    assert again.n_computed == 27
    with Bottlenecks(again.file) as half:  # as it was begun, where the options leave it open
        assert half.view(2).dtype == np.float16
    with pytest.raises(CacheError, match=r"made with dtype = float16, and float32 is required now"):
        cache_bottlenecks(data, modules, replace(options, dtype="float32"), cache=cache)
    options = replace(options, n_views=2, dtype="float32", overwrite=True)
    (wide,) = cache_bottlenecks(data, modules, options, cache=cache)
    assert wide.n_computed == 54
    assert wide.file.read_bytes() == files["float32"].read_bytes()


def test_two_modules_of_one_name_are_refused(small_module, tmp_path):
    data = open_dataset(write_unbalanced(tmp_path / "data"))
    module = resolve(str(small_module))
    with pytest.raises(CacheError, match=r"two modules are called small, which is also the name"):
        cache_bottlenecks(data, [module, module], cache=tmp_path / "cache")


@given(n_parts=st.integers(1, 40), sha256=st.text("0123456789abcdef", min_size=64, max_size=64))
def test_every_content_is_in_exactly_one_part(n_parts, sha256):
    assert sum(Part(i, n_parts).holds(sha256) for i in range(1, n_parts + 1)) == 1


def test_an_image_with_several_labels_gets_the_views_of_its_rarest(tmp_path):
    cells = ["many"] * 12 + ["many|few", "few", "", "some"] + ["some"] * 3
    paths = [f"{i:02d}.png" for i in range(len(cells))]
    pd.DataFrame({"path": paths, "label": cells}).to_csv(tmp_path / "l.csv", index=False)
    data = open_dataset(
        write_pixels(tmp_path / "d", *paths),
        labels=tmp_path / "l.csv",
        table=TableOptions(multi_label=True),
    )
    views = views_by_class(labels_of({"many": 13, "few": 2, "some": 4}), 1, 5)
    rows = wanted_rows(data, paths, Quarantine(tmp_path), 1, 5)
    some = views["some"]
    assert (views["many"], views["few"]) == (1, 5)
    assert rows.n_views.tolist() == [1] * 12 + [5, 5, 1, some] + [some] * 3
