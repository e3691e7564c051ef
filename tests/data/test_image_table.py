from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from hubretrain.data.dataset import open_dataset
from hubretrain.data.image_table import cluster_names
from hubretrain.extraction import CacheOptions
from tests.samples import encoded


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.lists(st.sampled_from("abcdefgh"), min_size=n, max_size=n),
            st.lists(st.sampled_from("stuvwxyz"), min_size=n, max_size=n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=4),
        )
    )
)
@settings(max_examples=60)
def test_clusters_are_what_groups_contents_and_pairs_join_step_by_step(
    made: tuple[list[str], list[str], list[tuple[int, int]]],
) -> None:
    groups, sha256s, near = made
    pairs = pd.DataFrame([(sha256s[a], sha256s[b]) for a, b in near], columns=["a", "b"])
    found = cluster_names(pd.Series(groups), pd.Series(sha256s), pairs)
    # The oracle: give both the lesser name wherever two belong together, until nothing changes.
    names, before = list(sha256s), []
    while names != before:
        before = list(names)
        for i in range(len(names)):
            for j in range(len(names)):
                tied = {(sha256s[i], sha256s[j]), (sha256s[j], sha256s[i])}
                if (
                    groups[i] == groups[j]
                    or sha256s[i] == sha256s[j]
                    or tied & set(zip(pairs["a"], pairs["b"], strict=True))
                ):
                    names[i] = names[j] = min(names[i], names[j])
    assert found == names


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two classes of photographs; one is there again, recompressed, in the other class."""
    for which, name in enumerate(("temple", "flower")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for left in (0, 150, 300):
            pixels = load_sample_images().images[which][100:300, left : left + 240]
            image = encoded(pixels, "JPEG", quality=90)
            (tmp_path / "data" / name / f"{left}.jpg").write_bytes(image)
    image = Image.open(tmp_path / "data/temple/150.jpg")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    (tmp_path / "data/flower/temple.jpg").write_bytes(buffer.getvalue())
    return tmp_path


def cluster_of(images: pd.DataFrame) -> dict[str, str]:
    return dict(zip(images["path"], images["cluster"], strict=True))


def test_near_duplicates_share_a_cluster_unless_they_are_not_looked_for(place: Path) -> None:
    data, cache = open_dataset(place / "data"), place / "cache"
    together = cluster_of(data.usable_images(cache))
    assert together["flower/temple.jpg"] == together["temple/150.jpg"]
    assert len(set(together.values())) == 6
    shutil.rmtree(cache)
    apart = cluster_of(data.usable_images(cache, near_duplicates=False))
    assert len(set(apart.values())) == 7
    assert not (cache / "data" / "copies.csv").exists()


def test_the_search_shows_progress_and_a_second_look_shows_none(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, cache = open_dataset(place / "data"), place / "cache"
    data.usable_images(cache)
    said = capsys.readouterr().err
    assert "looking at images: 7 of 7 images" in said
    assert "comparing pairs: " in said
    data.usable_images(cache)
    assert "looking" not in capsys.readouterr().err


def test_cached_features_take_part_in_the_search(
    place: Path, small_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubretrain.bottlenecks import Bottlenecks
    from hubretrain.data.near_duplicates import search as duplicates
    from hubretrain.extraction.cache import cache_bottlenecks
    from hubretrain.modules import resolve

    data, cache = open_dataset(place / "data"), place / "cache"
    cache_bottlenecks(data, [resolve(str(small_module))], CacheOptions(n_views=1), cache=cache)
    given, find = [], duplicates.find_duplicates

    def spy(*arguments: object, **options: object) -> duplicates.Duplicates:
        given.append(options["features"])
        return find(*arguments, **options)

    monkeypatch.setattr(duplicates, "find_duplicates", spy)
    sha256s = data.digests(cache)
    assert len(data.near_duplicates(sha256s, cache).pairs) == 1
    with Bottlenecks(cache / "data" / "small.h5") as bottlenecks:
        np.testing.assert_array_equal(given[0], bottlenecks.rows(sha256s))
