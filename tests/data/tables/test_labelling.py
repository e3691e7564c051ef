from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hubretrain.data.dataset import open_dataset, reopen_dataset
from hubretrain.data.layouts import find_images
from hubretrain.data.options import TableOptions
from hubretrain.data.splitting import read_folds, write_folds
from hubretrain.data.tables import read_table
from hubretrain.errors import DataError
from tests.samples import PIXEL

TABLE = pd.DataFrame(
    {
        "path": [f"{i}.png" for i in range(6)],
        "label": ["new, old", "new, old", "ä;ö", "ä;ö", "007", "NA"],
        "grade": [1, 2, 10, 10, 2, 1],
        "patient_id": ["p", "p", "", "r", "r", "r"],
    }
)
WRITERS = {
    "l.csv": lambda table, file: table.to_csv(file, index=False),
    "bom.csv": lambda table, file: table.to_csv(file, index=False, encoding="utf-8-sig"),
    "l.tsv": lambda table, file: table.to_csv(file, index=False, sep="\t"),
    "semicolons.csv": lambda table, file: table.to_csv(file, index=False, sep=";"),
    "tabs.txt": lambda table, file: table.to_csv(file, index=False, sep="\t"),
    "l.parquet": lambda table, file: table.to_parquet(file),
    "l.jsonl": lambda table, file: table.to_json(file, orient="records", lines=True),
}


def folder(tmp_path: Path, n: int = 6) -> Path:
    (tmp_path / "d").mkdir()
    for i in range(n):
        (tmp_path / "d" / f"{i}.png").write_bytes(PIXEL)
    return tmp_path / "d"


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_table_gives_the_same_data_set(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    root, file = folder(tmp_path), tmp_path / name
    WRITERS[name](TABLE, file)
    data = open_dataset(root, labels=file)
    assert data.images["label"].tolist() == TABLE["label"].tolist()
    assert data.grouped
    assert data.images["group"].tolist() == ["p", "p", "2.png", "r", "r", "r"]
    graded = open_dataset(
        root, labels=file, table=TableOptions(label_column="grade", group_column="none")
    )
    assert graded.class_names == ("1", "2", "10")
    assert graded.labels.tolist() == [0, 1, 2, 2, 1, 0]
    assert not graded.grouped


def test_whole_numbers_with_gaps_stay_whole_and_other_cells_are_text(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    table = pd.DataFrame(
        {
            "n": [1.0, np.nan, 3.0],
            "x": [0.5, 1.0, np.nan],
            "yes": [True, False, True],
            "kind": pd.Categorical(["a", None, "b"]),
            "when": pd.to_datetime(["2026-11-22", None, "2026-11-23"]),
            "s": ["1.0", " b ", None],
        }
    )
    table.to_parquet(tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    assert read["n"].tolist() == ["1", "", "3"]
    assert read["x"].tolist() == ["0.5", "1", ""]
    assert read["yes"].tolist() == ["True", "False", "True"]
    assert read["kind"].tolist() == ["a", "", "b"]
    assert read["when"].tolist() == ["2026-11-22 00:00:00", "", "2026-11-23 00:00:00"]
    assert read["s"].tolist() == ["1.0", "b", ""]


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"needs pyarrow; .* 'hubretrain\[parquet\]', or save the"):
        read_table(tmp_path / "t.parquet")


def test_a_split_column_is_honoured_unless_none_is_asked_for(tmp_path: Path) -> None:
    root, labels = folder(tmp_path), tmp_path / "l.csv"
    TABLE.assign(split=["train", "Val", "TEST", "", "dev", "training"]).to_csv(labels, index=False)
    splits = ["train", "validation", "test", "", "validation", "train"]
    assert open_dataset(root, labels=labels).images["split"].tolist() == splits
    plain = open_dataset(root, labels=labels, table=TableOptions(split_column="none"))
    assert set(plain.images["split"]) == {""}
    assert plain.opened_with["split_column"] == "none"


def test_a_known_table_named_by_an_option_keeps_its_groups(tmp_path: Path) -> None:
    root, labels = folder(tmp_path, 3), tmp_path / "HAM10000_metadata.csv"
    labels.write_text("lesion_id,image_id,dx\nl1,0,nv\nl1,1,nv\nl2,2,mel\n")
    data = open_dataset(root, labels=labels)
    assert data.images["group"].tolist() == ["l1", "l1", "l2"]
    again = reopen_dataset(root, data.opened_with)
    pd.testing.assert_frame_equal(again.images, data.images)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "cannot be read as a table: it is empty; expected a header and one row per image"),
        (b"path,label\n0.png,\x81\n", "is neither UTF-8, UTF-16 nor Windows-1252; save it as UTF"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read as a table: it is no text; expected a header"),
        (
            b"path,label\n0.png,p,x\n1.png,q,y\n",
            "read as a table: line 2 has 3 cells, the header 2",
        ),
        (b"path,label\n0.png,p\n1.png,q,z\n", "read as a table: line 3 has 3 cells, the header 2"),
        (b'path,label\n0.png,"p\n1.png,q\n', "cannot be read as a table: unexpected end of data"),
        (b"path,label\n", "none of its 0 rows names an image below"),
        (
            b"path,label,split\n0.png,p,1\n1.png,q,2\n",
            "'1' is no split; expected train, validation",
        ),
    ],
)
def test_a_bad_table_gets_one_clear_sentence(tmp_path: Path, text: bytes, sentence: str) -> None:
    root, labels = folder(tmp_path, 2), tmp_path / "l.csv"
    labels.write_bytes(text)
    with pytest.raises(DataError) as caught:
        open_dataset(root, labels=labels)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("l.parquet", b"none"), ("l.jsonl", b"{")])
def test_a_damaged_parquet_or_json_table_gets_one_clear_sentence(
    tmp_path: Path, name: str, text: bytes
) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError, match=rf"{name} cannot be read as a table: .*; expected"):
        read_table(tmp_path / name)


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read as a table: .*Is a directory"):
        read_table(tmp_path)


def test_a_column_of_measurements_is_no_label(tmp_path: Path) -> None:
    root, labels = folder(tmp_path, 50), tmp_path / "l.csv"
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(50)]})
    table.assign(label=np.linspace(0, 1, 50)).to_csv(labels, index=False)
    with pytest.raises(
        DataError, match=r"column 'label' has 50 different values for 50 images \(s"
    ):
        open_dataset(root, labels=labels)
    table.assign(label=np.arange(50) % 25).to_csv(labels, index=False)
    assert len(open_dataset(root, labels=labels).class_names) == 25


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_classes_and_groups_of_any_name_stay_what_they_are(
    tmp_path: Path, strange_name: str, suffix: str
) -> None:
    root, file = folder(tmp_path, 4), tmp_path / f"l.{suffix}"
    table = pd.DataFrame(
        {
            "path": sorted(find_images(root)),
            "label": [strange_name, "q", strange_name, "q"],
            "group": ["g", strange_name, "g", "h"],
        }
    )
    if suffix == "jsonl":
        table.to_json(file, orient="records", lines=True)
    else:
        table.to_csv(
            file, sep={"csv": ",", "tsv": "\t"}[suffix], index=False, quoting=csv.QUOTE_ALL
        )
    data = open_dataset(root, labels=file)
    assert data.images["label"].tolist() == table["label"].tolist()
    assert data.images["group"].tolist() == table["group"].tolist()
    images = data.images.assign(fold=0, sha256="1" * 64)
    write_folds(tmp_path / "folds.csv", images)
    again = read_folds(tmp_path / "folds.csv")
    for column in ("path", "label", "group", "sha256"):
        assert again[column].tolist() == images[column].tolist()
