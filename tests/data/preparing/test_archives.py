from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from hubretrain.data.dataset import open_dataset
from hubretrain.data.preparing.archives import prepare_images
from hubretrain.errors import DataError
from tests.samples import PIXEL


def zipped(file: Path, *names: str, data: bytes = PIXEL) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, data)
    return file


@pytest.mark.parametrize(
    ("names", "paths"),
    [
        (("cat/1.png", "dog/2.png"), ["cat/1.png", "dog/2.png"]),
        (("pets/cat/1.png", "pets/dog/2.png"), ["cat/1.png", "dog/2.png"]),
        (("a/b/train/cat/1.png", "a/b/train/dog/2.png"), ["cat/1.png", "dog/2.png"]),
        (("pets/cat/1.png", "pets/dog/x/2.png"), ["cat/1.png", "dog/x/2.png"]),
        (
            ("train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "__MACOSX/cat/._1.png"),
            ["train/cat/1.png", "train/dog/1.png", "val/cat/2.png"],
        ),
        (
            ("cat/1.png", "dog/2.png", "../out.png", "/etc/x.png", "dog/.x.png"),
            ["cat/1.png", "dog/2.png"],
        ),
        ((r"pets\cat\1.png", r"pets\dog\2.png"), ["cat/1.png", "dog/2.png"]),
    ],
)
def test_a_zip_of_class_folders_is_unpacked_below_the_folder_alone(
    tmp_path: Path, names: tuple[str, ...], paths: list[str]
) -> None:
    file = zipped(tmp_path / "pets.zip", *names)
    with pytest.raises(
        DataError, match="is an archive; unpack it by hubretrain data prepare images"
    ):
        open_dataset(file)
    unpacked = prepare_images(file, tmp_path / "in" / "pets")
    assert (unpacked.n_images, unpacked.n_written) == (len(paths), len(paths))
    assert open_dataset(tmp_path / "in" / "pets").images["path"].tolist() == paths
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "pets.zip"]
    assert prepare_images(file, tmp_path / "in" / "pets").n_written == 0


def test_a_zip_of_images_and_a_table_is_unpacked_with_it(tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("images/1.png", "images/2.png"):
            archive.writestr(name, PIXEL)
        archive.writestr("train.csv", "id,diagnosis\n1,a\n2,b\n")
    prepare_images(file, tmp_path / "x")
    assert open_dataset(tmp_path / "x").class_names == ("a", "b")


def shard(file: Path, labels: list[object], names: list[str] | None = None, **more: object) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    images = [{"bytes": PIXEL, "path": None} for _ in labels]
    table = pyarrow.table({"image": images, "label": labels, **more})
    if names:
        about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file)


def test_parquet_shards_with_images_inside_become_files_with_their_classes_and_splits(
    tmp_path: Path,
) -> None:
    source = tmp_path / "beans"
    shard(
        source / "data/train-00000-of-00002.parquet", [0, 1], ["cat", "a/b"], patient_id=["p", "q"]
    )
    shard(source / "data/train-00001-of-00002.parquet", [1], ["cat", "a/b"], patient_id=["p"])
    shard(source / "data/test-00000-of-00001.parquet", [0], ["cat", "a/b"], patient_id=["r"])
    with pytest.raises(DataError, match="no image files but parquet; if images are inside, unpack"):
        open_dataset(source)
    unpacked = prepare_images(source, tmp_path / "out")
    assert (unpacked.n_images, unpacked.n_written) == (4, 4)
    images = open_dataset(tmp_path / "out").images
    assert images["label"].tolist() == ["cat", "cat", "a/b", "a/b"]
    assert images["split"].tolist() == ["test", "train", "train", "train"]
    assert images["group"].tolist() == ["r", "p", "q", "p"]
    assert (tmp_path / "out" / images["path"][0]).read_bytes() == PIXEL
    assert prepare_images(source, tmp_path / "out").n_written == 0


def test_one_parquet_file_with_names_as_labels_is_unpacked(tmp_path: Path) -> None:
    shard(tmp_path / "x.parquet", ["NA", "1"])
    prepare_images(tmp_path / "x.parquet", tmp_path / "out")
    assert open_dataset(tmp_path / "out").images["label"].tolist() == ["NA", "1"]


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("missing", "nowhere does not exist; expected a zip, or parquet files with images"),
        ("empty folder", "holds no parquet files; expected a zip"),
        ("no images", "x.zip holds no images"),
        ("damaged", "x.parquet cannot be read as parquet: .*; download it again"),
        ("no bytes", "x.parquet holds no image bytes; its columns are: a"),
        ("many files", "x.zip holds more than 1 files; unpack it yourself"),
        ("large", "x.zip: a/1.png has .* bytes; expected at most"),
    ],
)
def test_what_cannot_be_unpacked_gets_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, sentence: str
) -> None:
    source = tmp_path / "x.parquet"
    if case == "missing":
        source = tmp_path / "nowhere"
    elif case == "empty folder":
        source = tmp_path
    elif case == "no images":
        source = zipped(tmp_path / "x.zip", "a.txt")
    elif case == "many files":
        monkeypatch.setattr("hubretrain.data.preparing.archives.MAX_MEMBERS", 1)
        source = zipped(tmp_path / "x.zip", "a/1.png", "a/2.png")
    elif case == "large":
        monkeypatch.setattr("hubretrain.data.preparing.archives.MAX_IMAGE_BYTES", 3)
        source = zipped(tmp_path / "x.zip", "a/1.png")
    else:
        pytest.importorskip("pyarrow")
        source.write_bytes(b"PAR1")
        if case == "no bytes":
            pd.DataFrame({"a": [1]}).to_parquet(source)
    with pytest.raises(DataError, match=sentence) as caught:
        prepare_images(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
