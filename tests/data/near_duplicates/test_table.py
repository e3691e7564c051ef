from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hubretrain.csv_tables import write_table
from hubretrain.data.near_duplicates.table import (
    COLUMNS,
    SEARCH,
    find_near_duplicates,
    read_near_duplicates,
)
from hubretrain.errors import DataError
from tests.messy import photograph, recompressed


class Place:
    """A folder of images and its table, and how many images a search has looked at."""

    def __init__(self, root: Path) -> None:
        self.root, self.table_file, self.looked_at = root, root / "cache" / "copies.csv", 0

    def add(self, **images: bytes) -> None:
        for name, image in images.items():
            (self.root / f"{name}.jpg").write_bytes(image)

    def search(self, **options: object) -> set[frozenset[str]]:
        paths = sorted(path.name for path in self.root.glob("*.jpg"))
        sha256s = [hashlib.sha256((self.root / p).read_bytes()).hexdigest() for p in paths]
        name_of = {s: p.removesuffix(".jpg") for p, s in zip(paths, sha256s, strict=True)}
        self.looked_at = 0

        def progress(what: str, n_done: int, n: int) -> None:
            self.looked_at = max(self.looked_at, n_done if what == "looking at images" else 0)

        self.found = find_near_duplicates(
            self.root, paths, sha256s, self.table_file.parent, progress=progress, **options
        )
        self.unreadable = {name_of[s]: why for s, why in self.found.unreadable.items()}
        pairs = zip(self.found.pairs["a"], self.found.pairs["b"], strict=True)
        return {frozenset((name_of[a], name_of[b])) for a, b in pairs}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    a, b = photograph(0, 0), photograph(1, 200)
    place.add(a=a, b=b, a_again=recompressed(a), broken=b"nothing")
    return place


def test_an_unchanged_data_set_is_not_searched_again(place: Place) -> None:
    assert place.search() == {frozenset(("a", "a_again"))}
    assert place.looked_at == 4
    first, table = place.found, place.table_file.read_bytes()
    assert place.search() == {frozenset(("a", "a_again"))}
    assert place.looked_at == 0
    pd.testing.assert_frame_equal(place.found.pairs, first.pairs)
    assert place.unreadable == {"broken": first.unreadable[next(iter(first.unreadable))]}
    assert place.unreadable["broken"].startswith("UnidentifiedImageError")
    assert place.table_file.read_bytes() == table


def test_renamed_and_removed_images_cost_no_search(place: Place) -> None:
    place.search()
    (place.root / "a.jpg").rename(place.root / "z.jpg")
    assert place.search() == {frozenset(("z", "a_again"))}
    (place.root / "a_again.jpg").unlink()
    assert place.search() == set()
    assert place.looked_at == 0


def test_new_images_are_compared_with_all_and_what_was_found_is_kept(place: Place) -> None:
    place.search()
    b = photograph(1, 200)
    place.add(b_again=recompressed(b), c=photograph(0, 300))
    pairs = {frozenset(("a", "a_again")), frozenset(("b", "b_again"))}
    assert place.search() == pairs
    assert place.looked_at == 6
    assert place.search() == pairs
    assert place.looked_at == 0
    assert set(place.unreadable) == {"broken"}


def test_a_missing_damaged_or_older_table_is_made_anew(place: Place) -> None:
    place.search()
    whole = place.table_file.read_text()
    undigested = "sha256,near,similarity,unreadable,search\na,b,c,d,e\n"
    older = re.sub(",sha256 of this table.*", "", whole).replace(",1,\n", ",0\n")
    without_pair = "".join(row for row in whole.splitlines(keepends=True) if ",0.9" not in row)
    assert without_pair != whole
    for text in ("", "no table", older, without_pair, undigested):
        place.table_file.write_text(text)
        assert place.search() == {frozenset(("a", "a_again"))}
        assert place.looked_at == 4
        assert place.table_file.read_text() == whole


def test_the_table_is_readable_by_people(place: Place) -> None:
    place.search()
    table = pd.read_csv(place.table_file)
    assert tuple(table.columns[:-1]) == COLUMNS
    assert table["near"].isna().sum() == 4
    assert len(table) == 5
    assert table["similarity"].dropna().between(0.92, 1).all()


def test_features_are_asked_for_in_a_search_only(place: Place) -> None:
    asked: list[int] = []

    def features(sha256s: list[str]) -> np.ndarray:
        asked.append(len(sha256s))
        return np.random.default_rng(0).normal(size=(len(sha256s), 8)).astype(np.float32)

    for _ in range(2):
        assert place.search(features=features) == {frozenset(("a", "a_again"))}
    assert asked == [4]


def test_the_table_reads_back_whatever_digests_and_reasons_look_like(
    tmp_path: Path, strange_name: str
) -> None:
    numbers = ("1" * 64, "2e5" + "0" * 61, "0" * 64)
    rows = [
        (numbers[0], "", None, "", SEARCH),
        (numbers[0], numbers[1], 0.95, "", SEARCH),
        (numbers[1], "", None, "", SEARCH),
        (numbers[2], "", None, strange_name, SEARCH),
    ]
    write_table(tmp_path / "copies.csv", pd.DataFrame(rows, columns=list(COLUMNS)), digested=True)
    near = read_near_duplicates(tmp_path)
    assert near is not None
    assert near.pairs.to_dict("records") == [{"a": numbers[0], "b": numbers[1], "similarity": 0.95}]
    assert near.unreadable == {numbers[2]: strange_name}


def test_there_are_no_near_duplicates_to_read_before_a_search(tmp_path: Path) -> None:
    assert read_near_duplicates(tmp_path) is None
    (tmp_path / "copies.csv").write_text("sha256,near\na,b\n")
    assert read_near_duplicates(tmp_path) is None


def test_a_file_that_cannot_be_read_for_a_moment_is_an_error_and_its_copy_is_found_later(
    place: Place,
) -> None:
    place.search()
    paths = ["a.jpg", "a_again.jpg", "b.jpg", "new.jpg", "gone.jpg"]
    new = recompressed(photograph(1, 200))
    place.add(new=new)
    gone = place.root / "gone.jpg"
    again = recompressed(photograph(0, 0)) + b"trailing"
    sha256s = [hashlib.sha256((place.root / p).read_bytes()).hexdigest() for p in paths[:-1]]
    sha256s.append(hashlib.sha256(again).hexdigest())
    folder = place.table_file.parent
    gone.mkdir()  # what cannot be read, also by root
    with pytest.raises(DataError, match=r"gone.jpg: cannot be read \(Is a direct.*, so near"):
        find_near_duplicates(place.root, paths, sha256s, folder)
    kept = read_near_duplicates(folder)
    assert kept is not None
    assert sha256s[-1] not in kept.unreadable
    assert {sha256s[2], sha256s[3]} in [set(pair) for pair in kept.pairs[["a", "b"]].to_numpy()]
    gone.rmdir()
    gone.write_bytes(new)  # other bytes than those of the digest
    with pytest.raises(DataError, match=r"gone.jpg: its bytes have changed, so near dup"):
        find_near_duplicates(place.root, paths, sha256s, folder)
    gone.write_bytes(again)
    found = find_near_duplicates(place.root, paths, sha256s, folder).pairs
    assert {sha256s[0], sha256s[-1]} in [set(pair) for pair in found[["a", "b"]].to_numpy()]
