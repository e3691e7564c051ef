from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hubretrain.data.dataset import open_dataset
from hubretrain.data.preparing.ham10000 import HAM10000_CLASSES, HAM10000_LESIONS, prepare_ham10000
from hubretrain.errors import DataError
from tests.samples import encoded

PIXEL = encoded(np.zeros((2, 3, 3), np.uint8), "JPEG")


def published() -> pd.DataFrame:
    """A table with the published counts: 10,015 images of 7,470 lesions."""
    dx = [name for name, n in HAM10000_CLASSES.items() for _ in range(n)]
    n_more = len(dx) - HAM10000_LESIONS
    # The first lesions have two images each; they are all of the first, largest, class.
    lesion = [*np.repeat(np.arange(n_more), 2), *range(n_more, HAM10000_LESIONS)]
    return pd.DataFrame(
        {
            "lesion_id": [f"HAM_{i:07d}" for i in lesion],
            "image_id": [f"ISIC_{24306 + i:07d}" for i in range(len(dx))],
            "dx": dx,
            "age": "50.0",
        }
    )


def zipped(files: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def csv(table: pd.DataFrame, sep: str = ",") -> bytes:
    return table.to_csv(index=False, sep=sep).encode()


def few(n: int = 6) -> tuple[pd.DataFrame, dict[str, bytes]]:
    table = published().iloc[[0, 1, 2, 7000, 7001, 7002]].head(n)
    return table, {f"images/{name}.jpg": PIXEL for name in table["image_id"]}


def test_the_archive_of_dataverse_with_archives_in_it_is_laid_out_whole(tmp_path: Path) -> None:
    table = published()
    names = [f"{name}.jpg" for name in table["image_id"]]
    file = tmp_path / "dataverse_files.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, how in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)):
            half = dict.fromkeys(names[5000 * part : 5000 if not part else None], PIXEL)
            archive.writestr(f"HAM10000_images_part_{part + 1}.zip", zipped(half), how)
        archive.writestr("HAM10000_metadata.tab", csv(table, "\t"))
        archive.writestr("ISIC2018_Task3_Test_GroundTruth.csv", b"image,MEL\n")
    folder = tmp_path / "ham10000"
    found = prepare_ham10000(file, folder)
    assert (found.n_images, found.n_lesions, found.n_copied) == (10_015, 7470, 10_015)
    data = open_dataset(folder)
    assert data.grouped
    assert data.images["label"].value_counts().to_dict() == HAM10000_CLASSES
    assert data.images["group"].nunique() == 7470


def test_the_folders_of_kaggle_with_each_image_twice_are_laid_out_once(tmp_path: Path) -> None:
    table, images = few()
    for folder in ("HAM10000_images_part_1", "ham10000_images_part_1"):
        (tmp_path / "k" / folder).mkdir(parents=True)
        for path, data in images.items():
            (tmp_path / "k" / folder / path.removeprefix("images/")).write_bytes(data)
    (tmp_path / "k" / "HAM10000_metadata.csv").write_bytes(csv(table))
    (tmp_path / "k" / "hmnist_28_28_L.csv").write_text("pixel0000\n1\n")
    found = prepare_ham10000(tmp_path / "k", tmp_path / "h", partial=True)
    assert (found.n_images, found.n_copied) == (6, 6)
    assert open_dataset(tmp_path / "h").class_names == ("mel", "nv")


def test_it_can_be_stopped_and_goes_on_where_it_was(tmp_path: Path) -> None:
    table, images = few()
    (tmp_path / "z.zip").write_bytes(zipped({"HAM10000_metadata.csv": csv(table), **images}))
    (tmp_path / "h" / "images").mkdir(parents=True)
    first = tmp_path / "h" / "images" / f"{table['image_id'].iloc[0]}.jpg"
    first.write_bytes(PIXEL[:-5])  # cut short by a kill of something that copied in place
    (first.parent / f"{table['image_id'].iloc[1]}.jpg").write_bytes(PIXEL)
    found = prepare_ham10000(tmp_path / "z.zip", tmp_path / "h", partial=True)
    assert (found.n_images, found.n_copied) == (6, 5)
    assert first.read_bytes() == PIXEL
    again = prepare_ham10000(tmp_path / "z.zip", tmp_path / "h", partial=True)
    assert (again.n_images, again.n_copied) == (6, 0)


@pytest.mark.parametrize(
    "name",
    ["../../outside/{}.jpg", "/tmp/hubretrain_outside/{}.jpg", "..\\..\\outside\\{}.jpg"],
)
def test_no_archive_writes_outside_the_folder(tmp_path: Path, name: str) -> None:
    table, images = few()
    evil = {name.format(path.removeprefix("images/")[:-4]): data for path, data in images.items()}
    evil |= {"../../outside/evil.sh": b"rm", "../HAM10000_images/../../x.jpg": PIXEL}
    archive = zipped({"HAM10000_metadata.csv": csv(table), **evil})
    source, folder = tmp_path / "a" / "z.zip", tmp_path / "a" / "b" / "h"
    source.parent.mkdir()
    source.write_bytes(archive)
    found = prepare_ham10000(source, folder, partial=True)
    assert found.n_images == 6
    written = {p for p in tmp_path.rglob("*") if p.is_file() and p != source}
    assert all(folder in p.parents for p in written)
    assert len(written) == 7
    assert not Path("/tmp/hubretrain_outside").exists()


def bad(tmp_path: Path, case: str) -> Path:
    table, images = few()
    files = {"HAM10000_metadata.csv": csv(table), **images}
    if case == "missing":
        return tmp_path / "nowhere.zip"
    if case == "no table":
        del files["HAM10000_metadata.csv"]
    elif case == "no images":
        files = {"HAM10000_metadata.csv": csv(table)}
    elif case == "no column":
        files["HAM10000_metadata.csv"] = csv(table.drop(columns="dx"))
    elif case == "odd image":
        files["HAM10000_metadata.csv"] = csv(table.assign(image_id="../../etc/passwd"))
    elif case == "counts":
        files["HAM10000_metadata.csv"] = csv(published().iloc[1:])
    elif case == "inner damaged":
        files["part_2.zip"] = b"PK nothing"
    data = zipped(files, zipfile.ZIP_STORED)
    if case == "cut":
        data = data[: len(data) // 2]
    elif case == "flipped":
        at = data.index(PIXEL) + len(PIXEL) // 2
        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    elif case == "huge":
        data = zipped({**files, "images/ISIC_0024306.jpg": bytes(65 * 2**20)})
    (tmp_path / "z.zip").write_bytes(data)
    return tmp_path / "z.zip"


@pytest.mark.parametrize(
    ("case", "partial", "sentence"),
    [
        ("missing", False, r"nowhere.zip does not exist; expected a folder or a zip of HAM10000"),
        ("no table", False, r"z.zip holds no HAM10000_metadata.csv \(nor .tab\); download the"),
        ("no images", True, r"z.zip holds no image of the 6 in the table; expected files such as"),
        ("no column", True, r"HAM10000_metadata.csv has no column 'dx'; its columns are: lesion_i"),
        ("odd image", True, r"'../../etc/passwd' is no image of HAM10000; expected ISIC_ and sev"),
        (
            "counts",
            False,
            (
                r"not HAM10000 as published: 6,704 images of nv instead of 6,705; no file for "
                r"10,009 images \(first: ISIC_0024309\); download what is missing, or .* `partial`"
            ),
        ),
        ("cut", True, r"z.zip cannot be opened as a zip: File is not a zip file; download it"),
        ("flipped", True, r"z.zip/images/ISIC_\d+.jpg cannot be read: Bad CRC-32 .*; down"),
        (
            "inner damaged",
            True,
            r"z.zip/part_2.zip cannot be opened as a zip: .*; download it again",
        ),
        ("huge", True, r"ISIC_0024306.jpg has 68,157,440 bytes; expected 67,108,864 at most"),
    ],
)
def test_a_bad_source_gets_one_clear_sentence(
    tmp_path: Path, case: str, partial: bool, sentence: str
) -> None:
    source = bad(tmp_path, case)
    with pytest.raises(DataError, match=sentence) as caught:
        prepare_ham10000(source, tmp_path / "h", partial=partial)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "h" / "HAM10000_metadata.csv").exists()


def test_the_real_images_are_laid_out_as_they_are(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "ham10000_600x450"
    found = prepare_ham10000(source, tmp_path / "h", partial=True)
    assert found.n_images == len(list((source / "images").iterdir()))
    for image in (tmp_path / "h" / "images").iterdir():
        assert image.read_bytes() == (source / "images" / image.name).read_bytes()
    with pytest.raises(DataError, match="is not HAM10000 as published"):
        prepare_ham10000(source, tmp_path / "h")


def test_an_archive_within_an_archive_is_unpacked_no_further_than_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubretrain.data.preparing.ham10000.MAX_INNER_BYTES", 3 * 2**20)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.jpg", bytes(8 * 2**20))
    stored = inner.getvalue() + bytes(8 * 2**20)  # compresses well once more
    with zipfile.ZipFile(tmp_path / "outer.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("HAM10000_images_part_1.zip", stored)
    with pytest.raises(DataError, match=r"part_1.zip unpacks to more than 3,145,728 bytes"):
        prepare_ham10000(tmp_path / "outer.zip", tmp_path / "new")
    (tmp_path / "outer.zip").unlink()
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(DataError, match=r"pipe.zip cannot be opened as a zip: .*named pipe"):
        prepare_ham10000(tmp_path, tmp_path / "new")
