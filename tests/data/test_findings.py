from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hubretrain.data.check import DataCheck
from hubretrain.data.findings import ISSUES, findings_of, similar_names
from tests.messy import SCRIPT, sentences


@pytest.mark.parametrize(
    "names", [["A-1", "a_1"], ["cat", "Cat", "CAT "], ["caf\u00e9", "cafe\u0301"], ["x y", "xy"]]
)
def test_names_that_only_look_different_are_alike(names: list[str]) -> None:
    assert similar_names([*names, "dog", "-", "+"]) == [names]


def test_names_with_different_letters_accents_or_digits_are_not_alike() -> None:
    assert similar_names(["cat", "cats", "cafe", "caf\u00e9", "1", "11", "-", "+", "??"]) == []


def test_every_kind_of_issue_is_registered_once_with_its_level(
    messy: tuple[DataCheck, Path],
) -> None:
    remarks = [
        (kind.level, *remark) for kind in ISSUES.values() for remark in kind.find(messy[0].summary)
    ]
    assert sorted(remarks) == sorted((f.level, f.what, f.advice) for f in messy[0].findings)
    assert {kind.level for kind in ISSUES.values()} == {"error", "wrong", "note"}


def test_a_class_without_images_is_named_beside_the_largest(messy: tuple[DataCheck, Path]) -> None:
    summary = messy[0].summary
    imbalance = replace(summary.imbalance, largest="nv", smallest="df", ratio=None)
    notes = [f.what for f in findings_of(replace(summary, imbalance=imbalance))]
    assert "Class 'df' has no image, class 'nv' has some." in notes
    imbalance = replace(imbalance, ratio=58.3)
    notes = [f.what for f in findings_of(replace(summary, imbalance=imbalance))]
    assert "Class 'nv' has 58 times as many images as 'df'." in notes


def test_everything_that_is_wrong_is_said(messy: tuple[DataCheck, Path]) -> None:
    checked, _ = messy
    (error,) = sentences(checked, "error")
    assert error == "Class 'Temple!' has 1 group of images, too few for 2 folds."
    wrong = "\n".join(sentences(checked, "wrong"))
    assert "2 images cannot be decoded (first: cut.jpg: a damaged image" in wrong
    assert f"with different labels: 1 (first: same.jpg ({SCRIPT}) and temple0.jpg (temple" in wrong
    assert "The given split leaks 1 image of validation and test: 0 by group, 0 by exact" in wrong
    assert "(first: flower2.jpg (test), near.jpg (train))" in wrong.replace(
        "near.jpg (train), flower2.jpg (test)", "flower2.jpg (test), near.jpg (train)"
    )
    assert "The given test split has no image of class 'Temple!'." in wrong
    assert "Classes 'Temple!' and 'temple' differ only in case, punctuation or spaces." in wrong
    notes = "\n".join(sentences(checked, "note"))
    assert "less than 32 pixels wide or high: 1 (first: tiny.png)" in notes
    assert "extension does not match their format: 1 (first: named.jpg)" in notes
    assert "not RGB: 1 (1 L)" in notes
    assert "A random 80/20 split would leak" in notes
    assert "Groups with several classes: 0" not in notes
