"""The parts of a data set's summary, each computed from its image table.

The table has one row per image: the columns of `ImageDataset.usable_images` and of
`images.read_headers`, `unreadable`: why an image cannot be decoded, or blank, `damage`: why it
looks cut, or blank, and `highest`: the highest level of channels of 16 bits, or -1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array, csr_array

from hubretrain.arrays import FloatArray
from hubretrain.data.classes import labels_of, one_row_per_label
from hubretrain.data.groups import folders_below_classes, repeated_folders
from hubretrain.data.images import SUFFIXES_OF
from hubretrain.data.splitting import leak_chances
from hubretrain.data.summary import (
    SMALL_SIDE,
    ClassSummary,
    DeepSummary,
    DuplicateSet,
    DuplicateSummary,
    FaultyImage,
    GivenSplitSummary,
    GroupSize,
    GroupSummary,
    ImageSize,
    ImbalanceSummary,
    LabelPair,
    LabelSummary,
    MixedGroup,
    SizeSummary,
    Spread,
)

N_LARGEST = 5  # groups and image sizes that are listed
N_PAIRS = 10  # of labels
CHANCE = 0.001  # of labels that go together by chance: not told where it is higher


def summarize_classes(
    table: pd.DataFrame, class_names: Iterable[str], multi_label: bool = False
) -> tuple[ClassSummary, ...]:
    """Return images, bytes, groups and leak of each class, in class order."""
    usable = _usable(table)
    chances = pd.Series(_leak_chances(usable["cluster"]), index=usable.index)
    of_class = dict(list(one_row_per_label(table, multi_label).groupby("label")))
    usable_of_class = dict(list(one_row_per_label(usable, multi_label).groupby("label")))
    classes = []
    for name in class_names:
        rows, usable_rows = of_class[name], usable_of_class.get(name, usable[:0])
        leak = _rounded(chances[usable_rows.index].mean()) if len(usable_rows) else None
        classes.append(
            ClassSummary(
                name=name,
                n_images=len(rows),
                share=round(len(rows) / len(table), 6),
                n_bytes=int(rows["n_bytes"].sum()),
                n_unreadable=len(rows) - len(usable_rows),
                n_groups=int(usable_rows["group"].nunique()),
                n_clusters=int(usable_rows["cluster"].nunique()),
                random_split_leak=leak,
            )
        )
    return tuple(classes)


def summarize_imbalance(
    table: pd.DataFrame, class_names: Iterable[str], multi_label: bool = False
) -> ImbalanceSummary:
    """Return the largest and the smallest class."""
    usable = _usable(table)
    labels = one_row_per_label(usable, multi_label)["label"]
    counts = labels.value_counts().reindex(list(class_names), fill_value=0)
    most, fewest = int(counts.max()), int(counts.min())
    return ImbalanceSummary(
        largest=str(counts.idxmax()),
        smallest=str(counts.idxmin()),
        ratio=round(most / fewest, 3) if fewest else None,
        majority_share=round(most / max(len(usable), 1), 6),
    )


def summarize_labels(table: pd.DataFrame, class_names: Sequence[str]) -> LabelSummary:
    """Return how labels go together, where an image may have several."""
    usable = _usable(table)
    of_image = labels_of(usable["label"], multi_label=True)
    order = {name: index for index, name in enumerate(class_names)}
    indices = [order[name] for names in of_image for name in names]
    ends = np.cumsum([0, *map(len, of_image)])
    flags = csr_array((np.ones(len(indices), np.int64), indices, ends), (len(usable), len(order)))
    both = coo_array(flags.T @ flags)
    counts, n_both = both.diagonal(), both.data
    a, b = both.coords
    is_pair = (a < b).nonzero()[0]
    largest = is_pair[np.lexsort([b[is_pair], a[is_pair], -n_both[is_pair]])][:N_PAIRS]
    # By chance every image with a has b with probability (N_b / N)^N_a, were they independent.
    chances = (counts / max(len(usable), 1))[b] ** counts[a]
    implies = (a != b) & (n_both == counts[a]) & (chances < CHANCE)
    implied = set(zip(a[implies].tolist(), b[implies].tolist(), strict=True))
    first_of: dict[int, int] = {}  # of labels that imply each other
    for c, d in sorted(implied):
        if c < d and (d, c) in implied:
            first_of.setdefault(d, first_of.get(c, c))
    equal = {c: [c] for c in sorted(first_of.values())}
    for d, c in sorted(first_of.items()):
        equal[c].append(d)
    names = list(class_names)
    return LabelSummary(
        n_without=sum(not labels for labels in of_image),
        per_image=_spread(pd.Series([len(labels) for labels in of_image])),
        n_sets=len(set(of_image)),
        pairs=tuple(LabelPair((names[a[i]], names[b[i]]), int(n_both[i])) for i in largest),
        equal=tuple(tuple(names[c] for c in labels) for labels in equal.values()),
        implied=tuple((names[c], names[d]) for c, d in sorted(implied) if (d, c) not in implied),
    )


def random_split_leak(table: pd.DataFrame) -> float | None:
    """Return the share of validation images, [0, 1], that a random 80/20 split would leak."""
    usable = _usable(table)
    return _rounded(_leak_chances(usable["cluster"]).mean()) if len(usable) else None


def summarize_sizes(table: pd.DataFrame) -> SizeSummary:
    """Return formats, colour modes and sizes of the images that can be decoded."""
    usable = _usable(table)
    suffixes = usable["path"].str.extract(r"(\.[^.]*)$")[0].str.lower()
    misnamed = [
        path
        for path, file_format, suffix in zip(
            usable["path"], usable["format"], suffixes, strict=True
        )
        if suffix not in SUFFIXES_OF.get(file_format, {suffix})
    ]
    sides = usable[["width", "height"]]
    common = sides.value_counts().head(N_LARGEST).reset_index()
    return SizeSummary(
        formats=_counts(usable["format"]),
        modes=_counts(usable["mode"]),
        n_sizes=len(sides.drop_duplicates()),
        width=_spread(sides["width"]),
        height=_spread(sides["height"]),
        common_sizes=tuple(
            ImageSize(int(w), int(h), int(n)) for w, h, n in common.itertuples(index=False)
        ),
        small=tuple(usable["path"][sides.min(axis=1) < SMALL_SIDE]),
        other_format_than_named=tuple(misnamed),
    )


def list_unreadable(table: pd.DataFrame) -> tuple[FaultyImage, ...]:
    """Return the images that cannot be decoded, with the reason."""
    rows = table[table["unreadable"] != ""]
    return tuple(map(FaultyImage, rows["path"], rows["unreadable"]))


def list_cut(table: pd.DataFrame) -> tuple[FaultyImage, ...]:
    """Return the images that can be decoded but look cut, with the reason."""
    rows = table[table["damage"] != ""]
    return tuple(map(FaultyImage, rows["path"], rows["damage"]))


def summarize_deep(table: pd.DataFrame, bits: int) -> DeepSummary | None:
    """Return the range of the images with 16 bits per channel; None without any.

    Args:
        table: The image table.
        bits: Bits that they are read with.
    """
    rows = table[table["highest"] >= 0]
    if rows.empty:
        return None
    brightest = int(rows["highest"].to_numpy().argmax())
    highest, path = rows["highest"].iloc[brightest], rows["path"].iloc[brightest]
    return DeepSummary(len(rows), int(highest), str(path), bits)


def summarize_groups(table: pd.DataFrame, *, grouped: bool, declined: bool = False) -> GroupSummary:
    """Return how many groups there are, how large, and which hold several classes.

    Args:
        table: The image table.
        grouped: Whether groups are given.
        declined: Whether options say that there are none.
    """
    n_folders, first_folder = (0, "") if grouped or declined else folders_below_classes(table)
    repeated = [] if grouped or declined else repeated_folders(table)
    if repeated:
        first_folder = str(table["path"].iloc[0]).rpartition("/")[0]
    usable = _usable(table)
    sizes = usable["group"].value_counts()
    counts = usable.groupby(["group", "label"], sort=True).size()
    n_classes = counts.groupby("group").size()
    largest = sizes.sort_index().sort_values(ascending=False, kind="stable").head(N_LARGEST)
    return GroupSummary(
        given=grouped,
        n_groups=len(sizes),
        n_with_several_images=int((sizes > 1).sum()),
        n_images_in_those=int(sizes[sizes > 1].sum()),
        n_groups_of_size={str(k): int(n) for k, n in sizes.value_counts().sort_index().items()},
        largest=tuple(GroupSize(str(g), int(n)) for g, n in largest.items() if n > 1),
        mixed_classes=tuple(
            MixedGroup(str(group), {str(name): int(n) for name, n in counts[group].items()})
            for group in n_classes[n_classes > 1].index
        ),
        n_folders=n_folders,
        first_folder=first_folder,
        repeated_folders=tuple(repeated),
    )


def summarize_duplicates(table: pd.DataFrame, pairs: pd.DataFrame) -> DuplicateSummary:
    """Return exact and near duplicates among the images that can be decoded.

    Args:
        table: The image table.
        pairs: Near duplicates, columns `a`, `b` (sha256) and `similarity`.
    """
    usable = _usable(table)
    repeated = usable[usable["sha256"].duplicated(keep=False)]
    exact = tuple(
        DuplicateSet(
            kind="exact",
            paths=tuple(rows["path"]),
            labels=tuple(rows["label"]),
            one_group=len(set(rows["group"])) == 1,
            similarity=1.0,
        )
        for _, rows in repeated.groupby("sha256", sort=False)
    )
    near = _near_duplicates(usable, pairs)
    return DuplicateSummary(
        n_exact_copies=len(repeated) - repeated["sha256"].nunique(),
        n_near_pairs=len(near),
        exact=exact,
        near=near,
        conflicting=tuple(images for images in (*exact, *near) if len(set(images.labels)) > 1),
    )


def _near_duplicates(usable: pd.DataFrame, pairs: pd.DataFrame) -> tuple[DuplicateSet, ...]:
    first = usable.drop_duplicates("sha256").set_index("sha256")
    path_of, group_of = first["path"].to_dict(), first["group"].to_dict()
    labels: dict[str, set[str]] = {}
    for sha256, label in zip(usable["sha256"], usable["label"], strict=True):
        labels.setdefault(sha256, set()).add(label)
    near = [
        DuplicateSet(
            kind="near",
            paths=(path_of[a], path_of[b]),
            labels=(" / ".join(sorted(labels[a])), " / ".join(sorted(labels[b]))),
            one_group=group_of[a] == group_of[b],
            similarity=round(float(similarity), 4),
        )
        for a, b, similarity in pairs[["a", "b", "similarity"]].itertuples(index=False)
        if a in path_of and b in path_of
    ]
    return tuple(sorted(near, key=lambda pair: (-pair.similarity, pair.paths)))


def summarize_given_split(
    table: pd.DataFrame, class_names: Iterable[str], multi_label: bool = False
) -> GivenSplitSummary | None:
    """Return classes and leaks of a given split; None where none was given."""
    usable = _usable(table)
    usable = usable[usable["split"] != ""]
    if usable.empty:
        return None
    labelled = one_row_per_label(usable, multi_label)
    counts = pd.crosstab(labelled["split"], labelled["label"])
    present = set(usable["split"])
    names = [name for name in ("train", "validation", "test") if name in present]
    counts = counts.reindex(index=names, columns=list(class_names), fill_value=0)
    held_out = usable["split"] != "train"

    def n_leaked_by(column: str) -> int:
        n_splits = usable.groupby(column)["split"].transform("nunique")
        return int((held_out & (n_splits > 1)).sum())

    torn = usable[usable.groupby("cluster")["split"].transform("nunique") > 1]
    return GivenSplitSummary(
        n_without_split=int((table["split"] == "").sum()),
        counts={
            str(name): {str(c): int(n) for c, n in row.items()} for name, row in counts.iterrows()
        },
        missing=tuple((n, c) for n in names for c in counts.columns if not counts.loc[n, c]),
        n_leaked=n_leaked_by("cluster"),
        n_leaked_by_group=n_leaked_by("group"),
        n_leaked_by_exact_copies=n_leaked_by("sha256"),
        leaks=tuple(
            tuple(rows["path"] + " (" + rows["split"] + ")")
            for _, rows in torn.groupby("cluster", sort=False)
        ),
    )


def _usable(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["unreadable"] == ""]


def _leak_chances(clusters: pd.Series) -> FloatArray:
    n = len(clusters)
    return leak_chances(clusters) if 0 < round(0.2 * n) < n else np.zeros(n)


def _counts(values: pd.Series) -> dict[str, int]:
    counts = values.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return {str(name): int(n) for name, n in counts.items()}


def _spread(values: pd.Series) -> Spread | None:
    if values.empty:
        return None
    return Spread(int(values.min()), int(values.median()), int(values.max()))


def _rounded(value: float) -> float:
    return round(float(value), 6)
