from __future__ import annotations

import h5py
import numpy as np
import pytest

from hubretrain.bottlenecks import (
    Bottlenecks,
    BottleneckWriter,
    cached_views,
)
from hubretrain.bottlenecks.reader import CachedView
from hubretrain.errors import CacheError
from tests.bottlenecks.samples import (
    ATTRIBUTES,
    N_FEATURES,
    fill,
    make,
    output_of,
    rows_of,
    sha256_of,
)


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "small.h5"
    assert make(path) == 10
    with Bottlenecks(path) as bottlenecks:
        assert (bottlenecks.n_images, bottlenecks.n_views) == (5, 2)
        assert bottlenecks.n_features == N_FEATURES
        assert bottlenecks.attributes["module_sha256"] == "m"
        wanted = [sha256_of("d"), sha256_of("a"), sha256_of("d")]
        assert np.array_equal(bottlenecks.rows(wanted, 1), [output_of(s, 1) for s in wanted])
        assert bottlenecks.verify() == []


def test_unfinished_rows_and_unknown_images_are_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "small.h5"
    with BottleneckWriter(path, rows_of("abc"), N_FEATURES, ATTRIBUTES) as writer:
        fill(writer, at_most=3)
    with Bottlenecks(path) as bottlenecks:
        with pytest.raises(CacheError, match=r"view 0 is not finished \(1 of 3 images are still"):
            bottlenecks.rows([sha256_of("a"), sha256_of("b"), sha256_of("c")])
        with pytest.raises(CacheError, match=r"no row for an image .* again for module small"):
            bottlenecks.rows([sha256_of("z")])
        assert bottlenecks.todo().sum() == 3
        assert "rows to do" in bottlenecks.verify()[0]


def test_an_image_that_could_not_be_decoded_is_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "small.h5"
    make(path, "abc", [1, 0, 1])
    with (
        Bottlenecks(path) as bottlenecks,
        pytest.raises(CacheError, match=r"1 of 2 images as ones that .* command again\.$"),
    ):
        bottlenecks.rows([sha256_of("a"), sha256_of("b")])


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "small.h5"
    make(path)
    with h5py.File(path) as file:
        offset = file["view_001"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset + 21] ^= 1
    path.write_bytes(data)
    with Bottlenecks(path) as bottlenecks:
        (wrong,) = bottlenecks.verify()
    assert wrong.startswith("view_001: its bytes are not those that were written; repair it by")


@pytest.fixture
def bottlenecks(tmp_path):
    """A file of 60 images, a third of which have three views and the others one."""
    path = tmp_path / "small.h5"
    make(path, range(60), [3 if i % 3 == 0 else 1 for i in range(60)])
    with Bottlenecks(path) as opened:
        yield opened


def test_slices_are_those_of_the_file_in_the_order_of_the_contents(bottlenecks):
    sha256s = np.random.default_rng(0).permutation(bottlenecks.sha256s)[:50].tolist()
    view = CachedView(bottlenecks, sha256s, 0)
    expected = bottlenecks.view(0)[:][[bottlenecks.sha256s.index(sha256) for sha256 in sha256s]]
    assert view.shape == (len(view), bottlenecks.n_features) == expected.shape
    np.testing.assert_array_equal(np.concatenate([view[:20], view[20:50]]), expected)


def test_an_image_has_a_row_for_each_of_its_own_views(bottlenecks):
    parts, image_of = cached_views(bottlenecks, bottlenecks.sha256s, all_views=True)
    assert len(parts) == 3
    assert sum(map(len, parts)) == len(image_of)
    np.testing.assert_array_equal(np.bincount(image_of), bottlenecks.n_views_of)
    np.testing.assert_array_equal(parts[2][:], bottlenecks.view(2)[:][bottlenecks.n_views_of > 2])
    parts, image_of = cached_views(bottlenecks, bottlenecks.sha256s, all_views=False)
    assert len(parts) == 1
    np.testing.assert_array_equal(image_of, np.arange(bottlenecks.n_images))


def test_an_image_that_is_not_cached_is_an_error_that_says_what_to_do(bottlenecks):
    parts, _ = cached_views(bottlenecks, ["f" * 64], all_views=True)
    with pytest.raises(CacheError, match="no row for an image with sha256 ffffffffffff"):
        parts[0][:]
