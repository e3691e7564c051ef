"""What a careful person looks at first in a data set, as facts of its image table.

The table has a row an image, with the columns of `contents.usable_images` and of `headers`,
and `unreadable`: why an image cannot be decoded, or blank. Facts are what JSON holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.data.images import SUFFIXES_OF
from hubretrain.data.splitting import leak_chances

Facts = dict[str, Any]

SMALL_SIDE = 32  # pixels: below, a backbone sees mostly interpolation


def class_facts(table: pd.DataFrame, class_names: Iterable[str]) -> list[Facts]:
    """Images, bytes, groups and leak of each class, in class order."""
    usable = table[table["unreadable"] == ""]
    chances = pd.Series(_leak(usable["cluster"]), index=usable.index)
    facts = []
    of_class = dict(list(table.groupby("label")))
    good_of_class = dict(list(usable.groupby("label")))
    for name in class_names:
        rows, good = of_class[name], good_of_class.get(name, usable[:0])
        facts.append(
            {
                "name": name,
                "n_images": len(rows),
                "share": round(len(rows) / len(table), 6),
                "n_bytes": int(rows["n_bytes"].sum()),
                "n_unreadable": len(rows) - len(good),
                "n_groups": int(good["group"].nunique()),
                "n_clusters": int(good["cluster"].nunique()),
                "random_split_leak": _rounded(chances[good.index].mean()) if len(good) else None,
            }
        )
    return facts


def random_split_leak(table: pd.DataFrame) -> float | None:
    """Share of validation images that a random 80/20 split leaks, 0 to 1."""
    usable = table[table["unreadable"] == ""]
    return _rounded(_leak(usable["cluster"]).mean()) if len(usable) else None


def size_facts(table: pd.DataFrame) -> Facts:
    """Formats, colour modes and sizes of the images that can be decoded."""
    usable = table[table["unreadable"] == ""]
    suffix = usable["path"].str.extract(r"(\.[^.]*)$")[0].str.lower()
    lies = [
        path
        for path, form, ending in zip(usable["path"], usable["format"], suffix, strict=True)
        if ending not in SUFFIXES_OF.get(form, {ending})
    ]
    sides = usable[["width", "height"]]
    common = sides.value_counts().head(5).reset_index().to_numpy().tolist()
    small = usable[sides.min(axis=1) < SMALL_SIDE]
    return {
        "formats": _counts(usable["format"]),
        "modes": _counts(usable["mode"]),
        "n_sizes": len(sides.drop_duplicates()),
        "width": _spread(sides["width"]),
        "height": _spread(sides["height"]),
        "common_sizes": [
            {"width": width, "height": height, "n_images": n} for width, height, n in common
        ],
        "small": small["path"].tolist(),
        "other_format_than_named": lies,
    }


def group_facts(table: pd.DataFrame, *, grouped: bool) -> Facts:
    """How many groups, how large, and which hold several classes."""
    usable = table[table["unreadable"] == ""]
    sizes = usable["group"].value_counts()
    counts = usable.groupby(["group", "label"], sort=True).size()
    n_classes = counts.groupby("group").size()
    mixed = n_classes[n_classes > 1].index
    largest = sizes.sort_index().sort_values(ascending=False, kind="stable").head(5)
    return {
        "given": grouped,
        "n_groups": len(sizes),
        "n_with_several_images": int((sizes > 1).sum()),
        "n_images_in_those": int(sizes[sizes > 1].sum()),
        "n_groups_of_size": {str(k): int(n) for k, n in sizes.value_counts().sort_index().items()},
        "largest": [{"group": str(g), "n_images": int(n)} for g, n in largest.items() if n > 1],
        "mixed_classes": [
            {"group": str(g), "classes": {str(c): int(n) for c, n in counts[g].items()}}
            for g in mixed
        ],
    }


def duplicate_facts(table: pd.DataFrame, pairs: pd.DataFrame) -> Facts:
    """Exact and near duplicates among the images that can be decoded.

    Args:
        table: The image table.
        pairs: Near duplicates, columns `a`, `b` (sha256) and `similarity`.

    Returns:
        `exact`: sets of files with the same bytes; `near`: pairs of contents, by their first
        paths; `conflicting`: those of either with several labels.
    """
    usable = table[table["unreadable"] == ""]
    first = usable.drop_duplicates("sha256").set_index("sha256")
    path_of, group_of = first["path"].to_dict(), first["group"].to_dict()
    labels = {str(sha256): sorted(set(rows)) for sha256, rows in usable.groupby("sha256")["label"]}
    several = usable[usable["sha256"].duplicated(keep=False)]
    exact = [
        {
            "kind": "exact",
            "paths": rows["path"].tolist(),
            "labels": rows["label"].tolist(),
            "one_group": len(set(rows["group"])) == 1,
            "similarity": 1.0,
        }
        for _, rows in several.groupby("sha256", sort=False)
    ]
    near = [
        {
            "kind": "near",
            "paths": [path_of[a], path_of[b]],
            "labels": [" / ".join(labels[a]), " / ".join(labels[b])],
            "one_group": group_of[a] == group_of[b],
            "similarity": round(float(similarity), 4),
        }
        for a, b, similarity in pairs[["a", "b", "similarity"]].itertuples(index=False)
        if a in path_of and b in path_of
    ]
    return {
        "n_exact_copies": len(several) - several["sha256"].nunique(),
        "n_near_pairs": len(near),
        "exact": exact,
        "near": sorted(near, key=lambda pair: (-pair["similarity"], pair["paths"])),
        "conflicting": [one for one in (*exact, *near) if len(set(one["labels"])) > 1],
    }


def split_facts(table: pd.DataFrame, class_names: Iterable[str]) -> Facts | None:
    """Classes and leaks of a given split; None where none was given."""
    usable = table[(table["unreadable"] == "") & (table["split"] != "")]
    if usable.empty:
        return None
    counts = pd.crosstab(usable["split"], usable["label"])
    names = [name for name in ("train", "validation", "test") if name in counts.index]
    counts = counts.reindex(index=names, columns=list(class_names), fill_value=0)
    held_out = usable["split"] != "train"

    def n_torn(column: str) -> int:
        return int((held_out & (usable.groupby(column)["split"].transform("nunique") > 1)).sum())

    torn = usable[usable.groupby("cluster")["split"].transform("nunique") > 1]
    return {
        "n_without_split": int((table["split"] == "").sum()),
        "counts": counts.to_dict(orient="index"),
        "missing": [[n, c] for n in names for c in counts.columns if not counts.loc[n, c]],
        "n_leaked": n_torn("cluster"),
        "n_leaked_by_group": n_torn("group"),
        "n_leaked_by_exact_copies": n_torn("sha256"),
        "leaks": [
            [f"{path} ({split})" for path, split in zip(rows["path"], rows["split"], strict=True)]
            for _, rows in torn.groupby("cluster", sort=False)
        ],
    }


def _leak(clusters: pd.Series) -> npt.NDArray[np.float64]:
    n = len(clusters)
    return leak_chances(clusters) if 0 < round(0.2 * n) < n else np.zeros(n)


def _counts(values: pd.Series) -> dict[str, int]:
    counts = values.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return {str(name): int(n) for name, n in counts.items()}


def _spread(values: pd.Series) -> dict[str, int] | None:
    if values.empty:
        return None
    return {"least": int(values.min()), "median": int(values.median()), "most": int(values.max())}


def _rounded(value: float) -> float:
    return round(float(value), 6)
