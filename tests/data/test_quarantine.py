from __future__ import annotations

from pathlib import Path

from hubretrain.data.quarantine import Quarantine

# Digests that look like numbers.
A, B = "1" * 64, "2e5" + "0" * 61


def test_quarantine_reads_back_whatever_paths_and_reasons_look_like(
    tmp_path: Path, strange_name: str
) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.add(A, strange_name, "an empty file")
    quarantine.add(B, "b.png", strange_name)
    quarantine.save()
    again = Quarantine(tmp_path)
    assert again.reasons == {A: "an empty file", B: strange_name}
    assert again.listed() == sorted([(strange_name, "an empty file"), ("b.png", strange_name)])


def test_contents_that_are_gone_leave_and_moved_ones_get_their_new_path(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.add(A, "a.png", "an empty file")
    quarantine.add(B, "b.png", "an empty file")
    quarantine.save()
    quarantine = Quarantine(tmp_path)
    quarantine.keep({A: "moved.png"})
    quarantine.save()
    assert Quarantine(tmp_path).listed() == [("moved.png", "an empty file")]
    quarantine.keep({})
    quarantine.save()
    assert not (tmp_path / "quarantine.csv").exists()


def test_what_another_run_added_meanwhile_is_kept(tmp_path: Path) -> None:
    one, other = (Quarantine(tmp_path) for _ in range(2))
    one.add(A, "a.png", "an empty file")
    other.add(B, "b.png", "an empty file")
    one.save()
    other.save()
    assert set(Quarantine(tmp_path).reasons) == {A, B}


def test_a_damaged_table_is_read_as_empty(tmp_path: Path) -> None:
    (tmp_path / "quarantine.csv").write_text("path,why\nx,y\n")
    assert Quarantine(tmp_path).reasons == {}
