"""What the facts of a data set mean: sentences, the gravest first."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hubretrain.data.summary import SMALL_SIDE, Facts

Level = Literal["error", "wrong", "note"]

UNBALANCED = 10  # times as many images in the largest class as in the smallest


@dataclass(frozen=True)
class Finding:
    """One thing to know about a data set.

    Attributes:
        level: `error`: hubretrain fit will refuse it; `wrong`: to be mended; `note`.
        what: What is.
        advice: What to do, or what hubretrain does about it.
    """

    level: Level
    what: str
    advice: str


def alike_names(class_names: Iterable[str]) -> list[list[str]]:
    """Class names that differ only in case, punctuation, spaces or the form of their accents."""
    alike: dict[str, list[str]] = {}
    for name in class_names:
        plain = unicodedata.normalize("NFKD", name).casefold()
        key = "".join(c for c in plain if c.isalnum() or unicodedata.category(c).startswith("M"))
        alike.setdefault(key or name, []).append(name)
    return [names for names in alike.values() if len(names) > 1]


def findings_of(facts: Facts) -> list[Finding]:
    """What the facts of `hubretrain.data.check.check_dataset` mean, the gravest first."""
    found = [
        *_too_small(facts),
        *_unreadable(facts),
        *_conflicting(facts),
        *_given_splits(facts),
        *_class_names(facts),
        *_duplicates(facts),
        *_groups(facts),
        *_classes(facts),
        *_files(facts),
    ]
    order = ("error", "wrong", "note")
    return sorted(found, key=lambda finding: order.index(finding.level))


def _too_small(facts: Facts) -> Iterable[Finding]:
    if "error" in facts["folds"]:
        what, _, advice = facts["folds"]["error"].rstrip(".").partition(": ")
        yield Finding("error", f"{what}.", f"{_sentence(advice)}.")


def _unreadable(facts: Facts) -> Iterable[Finding]:
    if bad := facts["unreadable"]:
        yield Finding(
            "wrong",
            f"{_images(len(bad))} cannot be decoded (first: {bad[0]['path']}: {bad[0]['reason']}).",
            "Mend or remove them; hubretrain cache puts them aside.",
        )


def _conflicting(facts: Facts) -> Iterable[Finding]:
    if conflicts := facts["duplicates"]["conflicting"]:
        one = conflicts[0]
        where = [f"{p} ({c})" for p, c in zip(one["paths"], one["labels"], strict=True)]
        pair = next(
            [where[0], w]
            for w, c in zip(where, one["labels"], strict=True)
            if c != one["labels"][0]
        )
        yield Finding(
            "wrong",
            f"Pictures that stand under different classes: {len(conflicts):,} (first: {pair[0]} "
            f"and {pair[1]}).",
            "Decide which class is right and remove the other copy.",
        )


def _given_splits(facts: Facts) -> Iterable[Finding]:
    given = facts["given_splits"]
    if given is None:
        return
    if given["n_leaked"]:
        yield Finding(
            "wrong",
            f"The given split leaks {_images(given['n_leaked'])} of validation and test: "
            f"{given['n_leaked_by_group']} by group, {given['n_leaked_by_exact_copies']} by copies "
            f"of a file, the rest by near duplicates (first: {', '.join(given['leaks'][0][:2])}).",
            "Move each of these groups and copies to one side, or pass --split-column none.",
        )
    if given["missing"]:
        split, name = given["missing"][0]
        n = len(given["missing"])
        more = f", and {n - 1} more" if n > 1 else ""
        yield Finding(
            "wrong",
            f"The given {split} split has no image of class {name!r}{more}.",
            "Its figures say nothing of that class.",
        )
    if given["n_without_split"]:
        yield Finding(
            "note",
            f"Images without a given split: {given['n_without_split']:,}.",
            "hubretrain fit places them.",
        )


def _class_names(facts: Facts) -> Iterable[Finding]:
    for names in alike_names(one["name"] for one in facts["classes"]):
        yield Finding(
            "wrong",
            f"Classes {' and '.join(map(repr, names))} differ only in case, punctuation or spaces.",
            "They stay separate classes; rename them if they are one.",
        )


def _duplicates(facts: Facts) -> Iterable[Finding]:
    found = facts["duplicates"]
    if found["n_exact_copies"] or found["n_near_pairs"]:
        yield Finding(
            "note",
            f"Files that repeat another byte by byte: {found['n_exact_copies']:,}; pairs of near "
            f"duplicates: {found['n_near_pairs']:,}.",
            "Copies stay on one side of every split.",
        )


def _groups(facts: Facts) -> Iterable[Finding]:
    groups, leak = facts["groups"], facts["random_split_leak"]
    if not groups["given"]:
        yield Finding(
            "note",
            "No groups are given.",
            "If several images show one thing, such as a lesion or a patient, name the column "
            "that tells with --group-column.",
        )
    if leak:
        yield Finding(
            "note",
            f"A random 80/20 split would leak {leak:.1%} of its validation images.",
            "hubretrain keeps groups and copies on one side.",
        )
    if mixed := groups["mixed_classes"]:
        classes = ", ".join(mixed[0]["classes"])
        yield Finding(
            "note",
            f"Groups that hold several classes: {len(mixed):,} (first: {mixed[0]['group']}: "
            f"{classes}).",
            "Right for patients with several findings, wrong for photographs of one thing.",
        )


def _classes(facts: Facts) -> Iterable[Finding]:
    largest, smallest = facts["imbalance"]["largest"], facts["imbalance"]["smallest"]
    ratio = facts["imbalance"]["ratio"]
    if ratio is None or ratio >= UNBALANCED:
        times = f"{ratio:,.0f} times as many images as" if ratio else "images, none of"
        yield Finding(
            "note",
            f"Class {largest!r} has {times} {smallest!r}.",
            "Judge by balanced accuracy, as hubretrain fit does here.",
        )


def _files(facts: Facts) -> Iterable[Finding]:
    sizes = facts["sizes"]
    if small := sizes["small"]:
        yield Finding(
            "note",
            f"Images less than {SMALL_SIDE} pixels wide or high: {len(small):,} (first: "
            f"{small[0]}).",
            "Backbones enlarge them to 96 pixels and more.",
        )
    if lies := sizes["other_format_than_named"]:
        yield Finding(
            "note",
            f"Images of another format than their names say: {len(lies):,} (first: {lies[0]}).",
            "They are read all the same.",
        )
    others = {mode: n for mode, n in sizes["modes"].items() if mode != "RGB"}
    if others and "RGB" in sizes["modes"]:
        listed = ", ".join(f"{n:,} {mode}" for mode, n in others.items())
        yield Finding(
            "note",
            f"Images that are not RGB: {sum(others.values()):,} ({listed}).",
            "All are read as RGB; see to it that colour does not tell the class.",
        )


def _images(n: int) -> str:
    return f"{n:,} image{'' if n == 1 else 's'}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
