"""What the summary of a data set means: one function per kind of issue, in a registry.

A new issue is one new function with `@issue(level)`, which takes the `Summary` and yields remarks:
what is the case and what to do about it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from hubretrain.data.groups import repeated_words
from hubretrain.data.images import pixels_refused
from hubretrain.data.left_out import left_out_sentences
from hubretrain.data.summary import SMALL_SIDE, Summary

Level = Literal["error", "wrong", "note"]
LEVELS: tuple[Level, ...] = ("error", "wrong", "note")
"""From the gravest: `hubretrain fit` refuses the data set; something to fix; good to know."""

FEW_GROUPS = 20  # with a label: on fewer of them its figures rest on chance
_SHOWN = 5  # names in a sentence
UNBALANCED = 10  # times as many images in the largest class as in the smallest


@dataclass(frozen=True)
class Finding:
    """One thing to know about a data set.

    Attributes:
        level: One of `LEVELS`.
        what: What is the case, a sentence.
        advice: What to do, or what hubretrain does about it, a sentence.
    """

    level: Level
    what: str
    advice: str


class Remark(NamedTuple):
    """What is the case, and what to do about it; a finding without its level."""

    what: str
    advice: str


Find = Callable[[Summary], Iterator[Remark]]


@dataclass(frozen=True)
class Issue:
    """One kind of issue that a data set may have.

    Attributes:
        level: Level of its findings.
        find: Yields remarks on a summary; none where all is well.
    """

    level: Level
    find: Find


ISSUES: dict[str, Issue] = {}
"""Every kind of issue by its name, in the order in which their findings are listed."""


def issue(level: Level) -> Callable[[Find], Find]:
    """Register a function as one kind of issue, named like the function."""

    def register(find: Find) -> Find:
        ISSUES[find.__name__] = Issue(level, find)
        return find

    return register


def findings_of(summary: Summary) -> tuple[Finding, ...]:
    """Return what a summary means, the gravest first."""
    findings = [
        Finding(kind.level, remark.what, remark.advice)
        for kind in ISSUES.values()
        for remark in kind.find(summary)
    ]
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))


@issue("error")
def folds_impossible(summary: Summary) -> Iterator[Remark]:
    """Find a test split and folds that cannot be cut."""
    if summary.folds.error is not None:
        # Errors are one sentence: what is the case, then what was expected or what to do.
        sentence = re.fullmatch(r"(.*)[:;] (.*)", summary.folds.error)
        what, advice = sentence.groups() if sentence else (summary.folds.error.rstrip("."), "")
        yield Remark(f"{what}.", advice[:1].upper() + advice[1:])


@issue("wrong")
def unreadable_images(summary: Summary) -> Iterator[Remark]:
    """Find image files that cannot be decoded."""
    if summary.unreadable:
        first = summary.unreadable[0]
        yield Remark(
            f"{_n_images(len(summary.unreadable))} cannot be decoded (first: {first.path}: "
            f"{first.reason}).",
            "Repair or remove them; hubretrain cache leaves them out."
            + " Larger images are read with `max_pixels`."
            * any(pixels_refused(image.reason) is not None for image in summary.unreadable),
        )


@issue("wrong")
def cut_images(summary: Summary) -> Iterator[Remark]:
    """Find images that can be decoded, but whose files look cut."""
    if summary.cut:
        first = summary.cut[0]
        yield Remark(
            f"{_n_images(len(summary.cut))} can be decoded but {_verb(summary.cut)} cut (first: "
            f"{first.path}: {first.reason}).",
            "Get the whole files, or remove them; hubretrain cache takes them as they are.",
        )


@issue("wrong")
def dark_16_bits(summary: Summary) -> Iterator[Remark]:
    """Find 16-bit images that use fewer bits, and so decode to near black."""
    deep = summary.deep
    if deep is not None and deep.highest < 2 ** (deep.bits - 2):
        yield Remark(
            f"{_n_images(deep.n_images)} with 16 bits per channel, and no level above "
            f"{deep.highest:,} (in {deep.brightest}): read with {deep.bits} bits, levels are "
            f"{deep.highest >> (deep.bits - 8)} of 255 at most.",
            f"Read them with `bits={likely_bits(deep.highest)}`, which is remembered.",
        )


@issue("note")
def fewer_bits(summary: Summary) -> Iterator[Remark]:
    """Find 16-bit images that are read with fewer bits."""
    deep = summary.deep
    if deep is not None and deep.bits < 16:
        yield Remark(
            f"{_n_images(deep.n_images)} with 16 bits per channel, levels up to {deep.highest:,}.",
            f"They are read with {deep.bits} bits: level {2**deep.bits - 1:,} is white.",
        )


@issue("wrong")
def pictures_left_out(summary: Summary) -> Iterator[Remark]:
    """Find pictures, videos and class folders that are not looked at."""
    for what, advice in left_out_sentences(summary.left_out):
        if advice:
            yield Remark(what, advice)


@issue("note")
def files_left_out(summary: Summary) -> Iterator[Remark]:
    """Find other files that are not looked at."""
    for what, advice in left_out_sentences(summary.left_out):
        if not advice:
            yield Remark(what, "Only images and their table are read.")


@issue("wrong")
def conflicting_labels(summary: Summary) -> Iterator[Remark]:
    """Find exact or near duplicates with different labels."""
    conflicts = summary.duplicates.conflicting
    if conflicts:
        images = list(zip(conflicts[0].paths, conflicts[0].labels, strict=True))
        path, label = images[0]
        other_path, other_label = next(image for image in images if image[1] != label)
        yield Remark(
            f"Duplicate images with different labels: {len(conflicts):,} (first: {path} "
            f"({label or 'no label'}) and {other_path} ({other_label or 'no label'})).",
            "Decide which label is right and remove the other image.",
        )


@issue("wrong")
def leaking_split(summary: Summary) -> Iterator[Remark]:
    """Find a given split that separates groups or duplicates."""
    split = summary.given_splits
    if split is not None and split.n_leaked:
        yield Remark(
            f"The given split leaks {_n_images(split.n_leaked)} of validation and test: "
            f"{split.n_leaked_by_group} by group, {split.n_leaked_by_exact_copies} by exact "
            f"duplicates, the rest by near duplicates (first: {', '.join(split.leaks[0][:2])}).",
            "Move each of these groups and duplicates to one side, or ignore the given split with "
            "`split_column=none`.",
        )


@issue("wrong")
def class_missing_in_split(summary: Summary) -> Iterator[Remark]:
    """Find a part of a given split without any image of some class."""
    if summary.given_splits is not None and summary.given_splits.missing:
        split, name = summary.given_splits.missing[0]
        n_more = len(summary.given_splits.missing) - 1
        more = f", and {n_more} more" if n_more else ""
        yield Remark(
            f"The given {split} split has no image of class {name!r}{more}.",
            "No head can learn it; give it images there, or use `exclude_class`."
            if split == "train"
            else "Its metrics say nothing about that class.",
        )


@issue("note")
def images_without_split(summary: Summary) -> Iterator[Remark]:
    """Find images that a given split leaves out."""
    if summary.given_splits is not None and summary.given_splits.n_without_split:
        yield Remark(
            f"Images without a given split: {summary.given_splits.n_without_split:,}.",
            "hubretrain fit assigns them to a part.",
        )


@issue("wrong")
def similar_class_names(summary: Summary) -> Iterator[Remark]:
    """Find class names that only look different."""
    for names in similar_names(one_class.name for one_class in summary.classes):
        yield Remark(
            f"Classes {' and '.join(map(repr, names))} differ only in case, punctuation or spaces.",
            "They stay separate classes; rename them if they are one.",
        )


@issue("wrong")
def equal_labels(summary: Summary) -> Iterator[Remark]:
    """Find labels that are on the same images."""
    for names in summary.labels.equal if summary.labels else ():
        yield Remark(
            f"Labels {_listed(names)} are on the same images.",
            "Each counts in the metrics; if they are one, merge them with `merge`.",
        )


@issue("note")
def implied_labels(summary: Summary) -> Iterator[Remark]:
    """Find labels that give another one away."""
    if summary.labels and (implied := summary.labels.implied):
        (first, second), more = implied[0], f" ({len(implied) - 1} more such pairs)"
        yield Remark(
            f"Every image with {first!r} has {second!r}, too{more * (len(implied) > 1)}.",
            "Expected of kinds within kinds; if one was derived from the other, use "
            "`exclude_class`.",
        )


@issue("note")
def images_without_label(summary: Summary) -> Iterator[Remark]:
    """Find images without any label, where an image may have several."""
    if summary.labels and summary.labels.n_without:
        yield Remark(
            f"Images without any label: {summary.labels.n_without:,}.",
            "They count as images that have none of the labels; if nobody looked for these, skip "
            "them with `skip_unlabelled`.",
        )


@issue("note")
def rare_labels(summary: Summary) -> Iterator[Remark]:
    """Find labels that few groups have, where an image may have several."""
    few = [c for c in summary.classes if c.n_clusters < FEW_GROUPS] if summary.labels else []
    few.sort(key=lambda of_class: of_class.n_clusters)
    if few:
        listed = _listed([f"{c.name} ({c.n_clusters})" for c in few[:_SHOWN]])
        yield Remark(
            f"Labels with fewer than {FEW_GROUPS} groups of images: {len(few):,} ({listed}"
            f"{', ...' * (len(few) > _SHOWN)}).",
            "Their intervals are wide, and their thresholds uncertain; `merge` or "
            "`drop_small_classes` does without them.",
        )


@issue("note")
def duplicates(summary: Summary) -> Iterator[Remark]:
    """Find exact and near duplicates."""
    n_exact, n_near = summary.duplicates.n_exact_copies, summary.duplicates.n_near_pairs
    if n_exact or n_near:
        yield Remark(
            f"Exact duplicate files: {n_exact:,}; pairs of near duplicates: {n_near:,}.",
            "Duplicates stay on one side of every split.",
        )


@issue("note")
def no_groups(summary: Summary) -> Iterator[Remark]:
    """Find a data set without groups."""
    if not summary.groups.given:
        yield Remark(
            "No groups are given.",
            "If several images show one thing, such as a lesion or a patient, name the column "
            "that identifies it with `group_column`, or take it from paths with `group_from`.",
        )


@issue("wrong")
def folders_without_groups(summary: Summary) -> Iterator[Remark]:
    """Find folders between classes and images, which may be those of patients."""
    names = summary.groups.repeated_folders
    if names:
        what, advice = repeated_words(names, summary.groups.first_folder)
        yield Remark(f"{what}.", advice[0].upper() + advice[1:])
    elif summary.groups.n_folders:
        yield Remark(
            f"Classes hold {summary.groups.n_folders:,} folders (such as "
            f"{summary.groups.first_folder}/), but each image counts as its own group.",
            "If each folder is a patient, a lesion or a series, use `group_from=folder:-1`, else "
            "`group_from=none`.",
        )


@issue("note")
def leaking_random_split(summary: Summary) -> Iterator[Remark]:
    """Find groups and duplicates that a random split would separate."""
    if summary.random_split_leak:
        yield Remark(
            f"A random 80/20 split would leak {summary.random_split_leak:.1%} of its validation "
            "images.",
            "hubretrain keeps groups and duplicates on one side.",
        )


@issue("note")
def mixed_groups(summary: Summary) -> Iterator[Remark]:
    """Find groups with images of several classes."""
    if mixed := summary.groups.mixed_classes:
        what = "whose images differ in labels" if summary.labels else "with several classes"
        yield Remark(
            f"Groups {what}: {len(mixed):,} (first: {mixed[0].group}: "
            f"{', '.join(name or 'no label' for name in mixed[0].classes)}).",
            "Expected of patients with several findings, wrong for photographs of one thing.",
        )


@issue("note")
def imbalanced_classes(summary: Summary) -> Iterator[Remark]:
    """Find a class that is far smaller than another."""
    imbalance = summary.imbalance
    largest, smallest = repr(imbalance.largest), repr(imbalance.smallest)
    kind = "Label" if summary.labels else "Class"
    if imbalance.ratio is None:
        what = f"{kind} {smallest} has no image, {kind.lower()} {largest} has some."
    elif imbalance.ratio >= UNBALANCED:
        what = f"{kind} {largest} has {imbalance.ratio:,.0f} times as many images as {smallest}."
    else:
        return
    metric = "mean average precision" if summary.labels else "balanced accuracy"
    yield Remark(what, f"Evaluate by {metric}, as hubretrain fit does here.")


@issue("note")
def small_images(summary: Summary) -> Iterator[Remark]:
    """Find images that are mostly interpolation once enlarged."""
    if small := summary.sizes.small:
        yield Remark(
            f"Images less than {SMALL_SIDE} pixels wide or high: {len(small):,} (first: "
            f"{small[0]}).",
            "Backbones enlarge them to 96 pixels or more.",
        )


@issue("note")
def misnamed_files(summary: Summary) -> Iterator[Remark]:
    """Find files of another format than their extension says."""
    if misnamed := summary.sizes.other_format_than_named:
        yield Remark(
            f"Files whose extension does not match their format: {len(misnamed):,} (first: "
            f"{misnamed[0]}).",
            "They are decoded all the same.",
        )


@issue("note")
def mixed_colour_modes(summary: Summary) -> Iterator[Remark]:
    """Find images that are not RGB among images that are."""
    others = {mode: n for mode, n in summary.sizes.modes.items() if mode != "RGB"}
    if others and "RGB" in summary.sizes.modes:
        listed = ", ".join(f"{n:,} {mode}" for mode, n in others.items())
        yield Remark(
            f"Images that are not RGB: {sum(others.values()):,} ({listed}).",
            "All are decoded to RGB; check that colour mode is not confounded with the label.",
        )


def similar_names(class_names: Iterable[str]) -> list[list[str]]:
    """Return class names that differ only in case, punctuation, spaces or encoded accents."""
    similar: dict[str, list[str]] = {}
    for name in class_names:
        folded = unicodedata.normalize("NFKD", name).casefold()
        key = "".join(c for c in folded if c.isalnum() or unicodedata.category(c).startswith("M"))
        similar.setdefault(key or name, []).append(name)
    return [names for names in similar.values() if len(names) > 1]


def likely_bits(highest: int) -> int:
    """Return the bits that levels up to the highest use, as cameras have them: 8, 10, ..., 16."""
    return max(8, 2 * -(-highest.bit_length() // 2))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(str, names))


def _verb(images: Sequence[object]) -> str:
    return "looks" if len(images) == 1 else "look"


def _n_images(n: int) -> str:
    return f"{n:,} image{'' if n == 1 else 's'}"
