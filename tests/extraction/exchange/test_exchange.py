from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data import open_dataset
from hubretrain.errors import CacheError, DataError, ModuleError
from hubretrain.export import export_run
from hubretrain.extraction import CacheOptions, cache_bottlenecks, cache_status
from hubretrain.extraction.exchange import export_bottlenecks, import_vectors
from hubretrain.modules import resolve, restore_module
from hubretrain.runs import Run
from hubretrain.screening import ScreenOptions, screen_modules
from tests.samples import write_digits

pytest.importorskip("pyarrow")
COSTS = ["n_parameters", "gflops", "ms_per_image", "seconds_to_cache", "seconds_to_fit"]


@pytest.fixture(scope="module")
def cached(tmp_path_factory, small_module):
    """(data set, its cache): digits with two views of one module, one file twice."""
    folder = tmp_path_factory.mktemp("exchange")
    digits = write_digits(folder / "digits", 90)
    first = min((digits / "0").iterdir())
    shutil.copy(first, digits / "0" / "copy.png")
    dataset = open_dataset(digits)
    options = CacheOptions(n_views=2, layers="last", engine="tensorflow")
    cache_bottlenecks(dataset, [resolve(small_module)], options, cache=folder / "cache")
    return dataset, folder / "cache"


@pytest.fixture
def vectors(cached, tmp_path):
    """(paths, vectors) of every image, of view 0."""
    dataset, cache = cached
    with Bottlenecks(cache / "digits" / "small.h5") as file:
        features = file.rows(dataset.digests(cache))
    return dataset.images["path"].tolist(), features


def imported(cached, tmp_path, paths, features, **options):
    """The bottlenecks of a `.npy` and a text of paths, by path."""
    np.save(tmp_path / "dino.npy", features)
    (tmp_path / "ids.txt").write_text("\n".join(paths) + "\n")
    return import_vectors(
        *(cached[0], tmp_path / "dino.npy", tmp_path / "ids.txt"),
        cache=tmp_path / "cache",
        **options,
    )


def board_of(dataset, cache, folder):
    options = ScreenOptions(l2=(1.0,), heads=("softmax",))
    board = screen_modules(dataset, folder, options, cache=cache).leaderboard
    return board.drop(columns=COSTS)


def test_what_is_exported_and_imported_again_gives_the_same_leaderboard(cached, tmp_path):
    dataset, cache = cached
    file = cache / "digits" / "small.h5"
    for form, ids in (("npz", "path"), ("parquet", "sha256")):
        output = tmp_path / f"small.{form}"
        assert export_bottlenecks(dataset, file, output, cache=cache) == 2 * len(dataset.images)
        again = import_vectors(dataset, output, ids, cache=tmp_path / "cache")
        assert (again.module, again.n_images, again.n_views, again.n_left_out) == (
            "small",
            90,
            2,
            0,
        )
        with Bottlenecks(again.file) as new, Bottlenecks(file) as old:
            assert new.verify() == []
            assert (new.sha256s, new.paths, new.digests) == (old.sha256s, old.paths, old.digests)
    pd.testing.assert_frame_equal(
        board_of(dataset, tmp_path / "cache", tmp_path / "new"),
        board_of(dataset, cache, tmp_path / "old"),
    )


def test_an_export_has_the_label_and_the_fold_of_every_image_and_view(cached, tmp_path):
    dataset, cache = cached
    file = cache / "digits" / "small.h5"
    export_bottlenecks(dataset, file, tmp_path / "small.parquet", cache=cache)
    export_bottlenecks(dataset, file, tmp_path / "small.npz", cache=cache)
    table = pd.read_parquet(tmp_path / "small.parquet")
    assert list(table.columns) == ["path", "sha256", "label", "fold", "view", "vector"]
    split = dataset.split(cache=cache)
    for view in range(2):
        of_view = table[table["view"] == view].reset_index(drop=True)
        for name in ("path", "sha256", "label", "fold"):
            assert of_view[name].tolist() == split[name].tolist()
        with Bottlenecks(file) as bottlenecks:
            expected = bottlenecks.rows(split["sha256"].tolist(), view)
        np.testing.assert_array_equal(np.stack(of_view["vector"]), expected)
    arrays = np.load(tmp_path / "small.npz", allow_pickle=False)
    assert (arrays["fold"].dtype, arrays["view"].dtype) == (np.int8, np.int16)
    for name in ("path", "sha256", "label", "fold", "view"):
        assert arrays[name].tolist() == table[name].tolist()
    np.testing.assert_array_equal(arrays["vector"], np.stack(table["vector"]))


def test_ids_may_be_paths_of_this_machine_or_digests_in_any_order(cached, vectors, tmp_path):
    dataset, cache = cached
    paths, features = vectors
    order = np.random.default_rng(0).permutation(len(paths))
    spellings = [
        [str(dataset.root / path) for path in paths],
        ["./" + path for path in paths],
        [path.replace("/", "\\") for path in paths],
        [digest.upper() for digest in dataset.digests(cache)],
    ]
    digests = set()
    for ids in spellings:
        result = imported(cached, tmp_path, [ids[i] for i in order], features[order])
        with Bottlenecks(result.file) as bottlenecks:
            digests.add(bottlenecks.attributes["module_sha256"])
            np.testing.assert_array_equal(bottlenecks.rows(dataset.digests(cache)), features)
    assert len(digests) == 1


def test_ids_may_stand_in_a_table_or_beside_the_vectors(cached, vectors, tmp_path):
    dataset, _ = cached
    paths, features = vectors
    pd.DataFrame({"n": range(len(paths)), "filename": paths}).to_csv(tmp_path / "ids.csv")
    pd.DataFrame({"where": paths}).to_csv(tmp_path / "bare.csv", header=False, index=False)
    np.save(tmp_path / "a.npy", features.astype(np.float16))
    np.savez(tmp_path / "b.npz", emb=features, names=np.array(paths), n=np.arange(len(paths)))
    lists = pd.DataFrame({"p": paths, "emb": list(features.astype(np.float64))})
    lists.to_parquet(tmp_path / "c.parquet")
    for file, ids in (
        ("a.npy", tmp_path / "ids.csv"),
        ("a.npy", tmp_path / "bare.csv"),
        ("b.npz", "names"),
        ("c.parquet", "p"),
    ):
        result = import_vectors(
            *(dataset, tmp_path / file, ids), cache=tmp_path / "cache", name="x", overwrite=True
        )
        with Bottlenecks(result.file) as bottlenecks:
            stored = bottlenecks.rows(dataset.digests(tmp_path / "cache"))
        assert stored.dtype == np.float32
        np.testing.assert_allclose(stored, features, rtol=2**-10, atol=2**-24)


def test_vectors_of_no_image_are_left_out_and_counted(cached, vectors, tmp_path):
    paths, features = vectors
    more = np.vstack([features, features[:2]])
    result = imported(cached, tmp_path, [*paths, "0/gone.png", "f" * 64], more)
    assert (result.n_images, result.n_left_out) == (90, 2)


def refused(cached, tmp_path, paths, features, **options):
    with pytest.raises((CacheError, DataError)) as caught:
        imported(cached, tmp_path, paths, features, **options)
    assert not (tmp_path / "cache" / "digits" / "dino.h5").exists()
    return str(caught.value)


def test_ids_that_do_not_fit_the_vectors_are_refused_in_a_sentence(cached, vectors, tmp_path):
    paths, features = vectors
    n = len(paths)
    said = refused(cached, tmp_path, paths[:-1], features)
    assert f"holds {n} vectors and {tmp_path / 'ids.txt'} {n - 1} ids; expected one id" in said
    said = refused(cached, tmp_path, paths[:-3], features[:-3])
    assert "has no vector of view 0 of 3 of 90 images (first: " in said
    twice = [*paths[:-1], paths[-2]]
    assert f"has two different vectors of view 0 of {paths[-2]}, one image" in refused(
        cached, tmp_path, twice, features
    )
    moved = np.roll(features, 1, axis=0)  # the two files of one content tell
    assert "0/copy.png, one image; expected one vector" in refused(cached, tmp_path, paths, moved)
    elsewhere = [f"elsewhere/{i}.jpg" for i in range(n)]
    said = refused(cached, tmp_path, elsewhere, features)
    assert f"none of {n} ids is an image of" in said
    assert "'elsewhere/0.jpg'" in said


def test_numbers_that_are_not_finite_are_refused_with_the_image(cached, vectors, tmp_path):
    paths, features = vectors
    for value in (np.nan, np.inf, 1e39):
        damaged = features.astype(np.float64)
        damaged[7, 2] = value
        said = refused(cached, tmp_path, paths, damaged)
        assert f"in 1 of {len(paths)} vectors (first: that of {paths[7]})" in said


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.zeros((91, 2, 2)), r"holds float64 of shape \(91, 2, 2\); expected numbers of shape"),
        (np.zeros(91), r"holds float64 of shape \(91,\)"),
        (np.full((91, 2), "1"), "holds <U1 of shape"),
        (np.zeros((0, 2)), "holds 0 vectors"),
    ],
)
def test_arrays_that_are_no_vectors_are_refused(cached, vectors, tmp_path, values, sentence):
    with pytest.raises(CacheError, match=sentence):
        imported(cached, tmp_path, vectors[0], values)


def test_files_that_hold_no_vectors_are_refused(cached, vectors, tmp_path):
    paths, features = vectors
    (tmp_path / "ids.txt").write_text("\n".join(paths))
    np.save(tmp_path / "good.npy", features)
    whole = (tmp_path / "good.npy").read_bytes()
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=features, b=features)
    ragged = pd.DataFrame({"p": paths, "v": [[0.0] * (1 + i % 2) for i in range(len(paths))]})
    ragged.to_parquet(tmp_path / "ragged.parquet")
    for name in ("cut.npy", "cut.npz", "cut.parquet"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "net.pt").write_bytes(b"x")
    for name, sentence in {
        "none.npy": "does not exist; expected a .npy, .npz or parquet file with one row",
        "cut.npy": "cannot be read",
        "cut.npz": "cannot be read",
        "cut.parquet": "cannot be read",
        "objects.npy": "cannot be read",
        "ragged.parquet": "the lists of column v are not of one length",
        "net.pt": "ends in .pt; expected a .npy, .npz or parquet file",
        "two.npz": "has a, b; expected one array or column of vectors",
    }.items():
        with pytest.raises(CacheError, match=sentence.replace(".", r"\.")):
            import_vectors(
                cached[0], tmp_path / name, tmp_path / "ids.txt", cache=tmp_path / "cache"
            )
    with pytest.raises(CacheError, match=r"nowhere does not exist; expected a text file"):
        import_vectors(cached[0], tmp_path / "good.npy", "nowhere", cache=tmp_path / "cache")
    with pytest.raises(CacheError, match=r"`name` is '\.\./x'; expected letters, digits"):
        import_vectors(
            cached[0],
            tmp_path / "good.npy",
            tmp_path / "ids.txt",
            name="../x",
            cache=tmp_path / "cache",
        )


def test_other_vectors_of_a_name_replace_it_only_where_that_is_requested(cached, vectors, tmp_path):
    paths, features = vectors
    file = imported(cached, tmp_path, paths, features).file
    before = file.read_bytes()
    imported(cached, tmp_path, paths, features)
    assert file.read_bytes() == before
    with pytest.raises(CacheError, match=r"was made with module_sha256 = .*or `overwrite`"):
        imported(cached, tmp_path, paths, 2 * features)
    imported(cached, tmp_path, paths, 2 * features, overwrite=True)
    with Bottlenecks(file) as bottlenecks:
        np.testing.assert_array_equal(
            bottlenecks.rows(cached[0].digests(tmp_path / "cache")), 2 * features
        )


def test_imported_features_are_ranked_but_neither_exported_nor_fine_tuned(
    cached, vectors, tmp_path
):
    dataset, _ = cached
    imported(cached, tmp_path, *vectors)
    options = ScreenOptions(l2=(1.0,), heads=("softmax",))
    fitted = screen_modules(dataset, tmp_path / "run", options, cache=tmp_path / "cache")
    assert fitted.leaderboard["module"].iloc[0] == "dino"
    run = Run(tmp_path / "run")
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text())["fit"]["modules"]["dino"][
            "imported_from"
        ]
        == "dino.npy"
    )
    sentence = (
        r"dino is features that were imported from dino\.npy, without a network that computes "
        r"them: they are ranked, but cannot be exported, fine-tuned or explained"
    )
    with pytest.raises(ModuleError, match=sentence):
        export_run(run, head="dino")
    with pytest.raises(ModuleError, match=sentence):
        restore_module("dino", run.fit.module("dino"))


def test_a_module_of_the_same_name_neither_takes_the_place_of_imported_features_nor_is_it_said_to(
    cached, vectors, tmp_path, small_module
):
    dataset, _ = cached
    imported(cached, tmp_path, *vectors, name="small")
    (row,) = cache_status(dataset, tmp_path / "cache").to_dict("records")
    assert (row["why"], row["to_compute"]) == ([], 0)
    for engine in ("tensorflow", "auto"):
        options = CacheOptions(n_views=1, engine=engine)
        with pytest.raises(CacheError, match=r"small\.h5 was made with .* is required now; "):
            cache_bottlenecks(dataset, [resolve(small_module)], options, cache=tmp_path / "cache")
