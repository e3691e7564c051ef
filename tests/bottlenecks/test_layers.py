"""Features of inner layers: written, read, grown, damaged and refused."""

from __future__ import annotations

import hashlib

import h5py
import numpy as np
import pytest

from hubretrain.bottlenecks import (
    Bottlenecks,
    BottleneckWriter,
    cached_views,
    layer_segments,
    merge_files,
    seal_file,
    shrink_file,
)
from hubretrain.errors import CacheError
from tests.bottlenecks.samples import (
    ATTRIBUTES,
    LAYERS,
    N_ALL,
    N_FEATURES,
    edited,
    features_of,
    fill,
    make,
    output_of,
    rows_of,
    sha256_of,
)

ALL = {"layers": "all"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "small.h5"


def test_the_file_is_plain_hdf5_as_its_documentation_says(path):
    make(path, attributes=ALL, layers=LAYERS)
    with h5py.File(path) as file:
        inner = ["layer_digests", "layers_000", "layers_001", "segments"]
        assert sorted(file) == sorted([*inner, "digests", "images", "seal", "view_000", "view_001"])
        assert file["view_000"].shape == (5, N_FEATURES)
        assert file["layers_000"].shape == (5, N_ALL - N_FEATURES)
        assert file["layers_000"].chunks is None
        assert file.attrs["format_version"] == 2
        table = file["segments"][:]
        assert table.dtype.names == ("layer", "statistic", "first", "stop", "height", "width")
        assert [tuple(row) for row in table.tolist()] == [
            (b"output", b"output", 0, 6, 1, 1),
            (b"stem/Relu", b"mean", 6, 8, 4, 4),
            (b"stem/Relu", b"standard deviation", 8, 10, 4, 4),
            (b"block/add", b"mean", 10, 13, 2, 1),
            (b"block/add", b"standard deviation", 13, 16, 2, 1),
        ]
        content = file["layers_001"][:].tobytes()
        assert file["layer_digests"][1].decode() == hashlib.sha256(content).hexdigest()


def test_the_output_is_stored_as_in_a_file_of_the_last_layer_alone(path, tmp_path):
    make(path, attributes=ALL, layers=LAYERS)
    make(tmp_path / "last.h5")
    with h5py.File(path) as all_layers, h5py.File(tmp_path / "last.h5") as last:
        for name in ("view_000", "view_001", "digests", "images/sha256"):
            np.testing.assert_array_equal(all_layers[name][:], last[name][:])


def test_chosen_layers_are_read_in_the_order_of_the_file(path):
    make(path, "abcdefgh", attributes=ALL, layers=LAYERS)
    with Bottlenecks(path) as bottlenecks:
        assert bottlenecks.layers == ("stem/Relu", "block/add")
        assert bottlenecks.has_layers
        assert bottlenecks.verify() == []
        expected = np.array([features_of(sha256, 1) for sha256 in bottlenecks.sha256s])
        columns = {
            "last": range(6),
            "all": range(16),
            (): range(6),
            ("block/add",): [*range(6), *range(10, 16)],
            ("block/add", "stem/Relu"): range(16),
        }
        for layers, chosen in columns.items():
            view = bottlenecks.view(1, layers)
            assert view.shape == (8, bottlenecks.n_features_of(layers)) == (8, len(chosen))
            np.testing.assert_array_equal(view[:], expected[:, chosen])
            np.testing.assert_array_equal(view[-3], expected[-3, chosen])
            np.testing.assert_array_equal(view[5:2:-2], expected[5:2:-2, chosen])
            rows = [7, 0, 3, 3]
            wanted = [bottlenecks.sha256s[row] for row in rows]
            np.testing.assert_array_equal(
                bottlenecks.rows(wanted, 1, layers), expected[rows][:, chosen]
            )
            parts, _ = cached_views(bottlenecks, wanted, all_views=True, layers=layers)
            assert parts[1].shape == (4, len(chosen))
            np.testing.assert_array_equal(parts[1][1:], expected[rows][1:, chosen])


def test_rows_are_read_in_any_order_also_where_blocks_hold_few(path, monkeypatch):
    make(path, range(60), attributes=ALL, layers=LAYERS)
    monkeypatch.setattr("hubretrain.bottlenecks.layout.BLOCK_BYTES", 7 * N_ALL * 4)
    monkeypatch.setattr("hubretrain.bottlenecks.views._GAP_BYTES", 3 * N_ALL * 4)
    with Bottlenecks(path) as bottlenecks:
        view = bottlenecks.view(0, "all")
        expected = view[:]
        random = np.random.default_rng(0)
        for n in (0, 1, 5, 40, 200):
            rows = random.integers(0, 60, n)
            np.testing.assert_array_equal(view.take(rows), expected[rows])


def test_a_file_of_the_last_layer_grows_and_keeps_its_output_meanwhile(path, tmp_path):
    make(path)
    with BottleneckWriter(
        path, rows_of("abcde"), N_FEATURES, {**ATTRIBUTES, **ALL}, layers=LAYERS
    ) as writer:
        assert writer.todo.all()
        fill(writer, at_most=3)
    with Bottlenecks(path) as bottlenecks:
        wanted = bottlenecks.sha256s
        expected = [output_of(sha256, 1) for sha256 in wanted]
        np.testing.assert_array_equal(bottlenecks.rows(wanted, 1), expected)
        with pytest.raises(CacheError, match=r"view 1 is not finished \(4 of 5 images are still"):
            bottlenecks.rows(wanted, 1, "all")
    assert make(path, attributes=ALL, layers=LAYERS) == 10 - 3
    make(tmp_path / "at_once.h5", attributes=ALL, layers=LAYERS)
    assert path.read_bytes() == (tmp_path / "at_once.h5").read_bytes()


def test_growing_with_fewer_views_deletes_none_also_after_a_stop(path):
    make(path, n_views=3)
    for _ in range(2):
        rows = rows_of("abcde", 1)
        attributes = {**ATTRIBUTES, **ALL}
        with BottleneckWriter(path, rows, N_FEATURES, attributes, layers=LAYERS) as writer:
            assert writer.rows.n_views.tolist() == [3] * 5
            fill(writer, at_most=2)


def test_new_images_and_views_of_a_file_with_layers_cost_their_own_passes(path, tmp_path):
    make(path, "bd", 1, attributes=ALL, layers=LAYERS)
    assert make(path, "abcde", 2, attributes=ALL) == 10 - 2  # the layers of the file
    make(tmp_path / "at_once.h5", attributes=ALL, layers=LAYERS)
    assert path.read_bytes() == (tmp_path / "at_once.h5").read_bytes()
    assert shrink_file(path, {sha256_of(name) for name in "abc"}, 1, dry_run=False).n_bytes == (
        (5 * 2 - 3) * N_ALL * 4
    )
    seal_file(path)
    make(tmp_path / "fewer.h5", "abc", 1, attributes=ALL, layers=LAYERS)
    assert path.read_bytes() == (tmp_path / "fewer.h5").read_bytes()


def test_other_layers_are_refused_and_overwriting_replaces_them(path):
    make(path, attributes=ALL, layers=LAYERS)
    before = path.read_bytes()
    other = layer_segments(N_FEATURES, [("block/add", 2, 1, 3)])
    with pytest.raises(
        CacheError,
        match=r"was made with layers = all \(2 inner layers, stem/Relu among them\), and 1 \(1 "
        r"inner layers\) is required now; use another `cache` folder, or `overwrite`",
    ):
        make(path, attributes={"layers": 1}, layers=other)
    assert path.read_bytes() == before
    assert make(path, attributes={"layers": 1}, layers=other, overwrite=True) == 10
    with Bottlenecks(path) as bottlenecks:
        assert bottlenecks.layers == ("block/add",)
        assert bottlenecks.verify() == []


def test_parts_with_layers_merge_into_the_file_that_was_made_at_once(path, tmp_path):
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    make(one, "bcd", attributes=ALL, layers=LAYERS)
    make(two, "ade", attributes=ALL, layers=LAYERS)
    with edited(two, stopped=True) as file:  # d as a kill would leave it
        file["layers_001"][1] = float("nan")
    merge_files([two, one], path)
    make(tmp_path / "at_once.h5", attributes=ALL, layers=LAYERS)
    assert path.read_bytes() == (tmp_path / "at_once.h5").read_bytes()
    make(tmp_path / "last.h5", "fg")
    with pytest.raises(CacheError, match=r"belong together: 2 inner layers in the first, 0 in the"):
        merge_files([one, tmp_path / "last.h5"], tmp_path / "merged.h5")
    with edited(two, stopped=True) as file:
        file["layers_000"][1, 2] += 1
    with pytest.raises(CacheError, match=r"have different bottlenecks of d.png"):
        merge_files([one, two], tmp_path / "merged.h5")


def test_a_flipped_bit_in_a_layer_is_found(path):
    make(path, attributes=ALL, layers=LAYERS)
    with h5py.File(path) as file:
        offset = file["layers_001"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset + 21] ^= 1
    path.write_bytes(data)
    with Bottlenecks(path) as bottlenecks:
        (wrong,) = bottlenecks.verify()
    assert wrong.startswith(
        "layers_001: its bytes are not those that were written; repair it by `hub"
    )
    with pytest.raises(CacheError, match=r"small.h5: layers_001: its bytes are not those"):
        make(path, "abcdef", attributes=ALL, layers=LAYERS)


def test_all_layers_of_a_file_of_the_last_one_are_an_error_that_says_what_to_do(path):
    make(path)
    with Bottlenecks(path) as bottlenecks:
        assert bottlenecks.lacks_layers
        with pytest.raises(
            CacheError,
            match=r"holds features of the last layer alone; run `hubretrain cache` for module "
            r"small, which adds those of inner layers, or choose `layers` last",
        ):
            bottlenecks.view(0, "all")
        with pytest.raises(CacheError, match=r"holds no layer conv; it holds the last layer alone"):
            bottlenecks.rows(bottlenecks.sha256s, 0, ["conv"])
        with pytest.raises(CacheError, match=r"`layers` is 'first'; expected last, all, or a list"):
            bottlenecks.n_features_of("first")


def test_all_layers_of_a_module_without_feature_maps_are_its_output(path):
    make(path)
    assert make(path, attributes=ALL, layers=()) == 0
    with Bottlenecks(path) as bottlenecks:
        assert not bottlenecks.has_layers
        assert not bottlenecks.lacks_layers
        np.testing.assert_array_equal(bottlenecks.view(0, "all")[:], bottlenecks.view(0)[:])


def test_a_feature_beyond_float16_names_its_layer(path):
    features = np.ones((1, N_ALL), np.float32)
    features[0, 11] = 70_000
    with BottleneckWriter(
        path, rows_of("a"), N_FEATURES, ATTRIBUTES, dtype=np.float16, layers=LAYERS
    ) as writer:
        with pytest.raises(
            CacheError,
            match=r"a feature of layer block/add is beyond the range of float16; cache again with",
        ):
            writer.write([0], [0], features)
        assert writer.todo.all()


def _replace(file, name, value):
    del file[name]
    if value is not None:
        file[name] = value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: _replace(f, "segments", f["segments"][:3]), "does not divide the 6"),
        (lambda f: _replace(f, "segments", f["segments"][:0]), "does not divide the 6"),
        (lambda f: _replace(f, "segments", f["segments"][:][::-1]), "does not divide the 6"),
        (lambda f: _replace(f, "segments", np.arange(3)), "is no table of segments"),
        (lambda f: _replace(f, "segments", f["segments"]["layer"]), "is no table of segments"),
        (lambda f: _replace(f, "layers_001", None), "layers_001"),
        (lambda f: _replace(f, "layers_001", np.zeros((5, 3))), r"has shape \(5, 3\), expected"),
        (lambda f: _replace(f, "layer_digests", None), "layer_digests"),
    ],
)
def test_a_damaged_table_or_a_missing_layer_is_one_sentence(path, change, reason):
    make(path, attributes=ALL, layers=LAYERS)
    with edited(path) as file:
        change(file)
    with pytest.raises(CacheError, match=rf"small.h5 is damaged \(.*{reason}.*repair it by `hubr"):
        Bottlenecks(path)


def test_a_table_that_names_a_layer_twice_is_damaged(path):
    twice = layer_segments(N_FEATURES, [("a", 2, 2, 2), ("a", 1, 1, 3)])
    make(path, layers=twice)
    with pytest.raises(CacheError, match=r"is damaged \(/segments names a layer twice\)"):
        Bottlenecks(path)
