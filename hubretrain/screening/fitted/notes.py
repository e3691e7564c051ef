"""The sentences of a fit: on images, split and choice, on labels, on a race before, on more images.

What the comparison of the modules says stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.data import ImageDataset
from hubretrain.data.splitting import TEST, kept_together, worst_deviation
from hubretrain.evaluation import FEWEST_POSITIVES, UNCHOSEN
from hubretrain.runs import Run
from hubretrain.screening.fitted.more_images import learning_curve
from hubretrain.screening.options import ScreenOptions
from hubretrain.screening.screen import Probe
from hubretrain.screening.sweep import Sweep

MOST_NAMED = 10  # labels in a sentence


def on_images(
    images: pd.DataFrame,
    dataset: ImageDataset,
    sweep: Sweep,
    keep_duplicates_together: bool,
) -> list[str]:
    """Return sentences on the images, the split and the choice."""
    parts, clusters = images["fold"].to_numpy(), images["cluster"].to_numpy()
    n_test, n_folds = int((parts == TEST).sum()), len(set(parts[parts >= 0]))
    n_validated = int((parts >= 0).sum())
    folds = f"{n_folds} folds over the rest" if n_folds > 1 else f"validation split {n_validated:,}"
    together = kept_together(parts, clusters, dataset.grouped, keep_duplicates_together)
    kind = "labels" if sweep.multi_label else "classes"
    size = (
        f"{len(images):,} images, {len(dataset.class_names)} {kind}, {len(set(clusters)):,} "
        f"groups; test split {n_test:,}, {folds}."
    )
    deviation = worst_deviation(parts, images["label"], dataset.multi_label)
    share = f"a {'label' if sweep.multi_label else 'class'} share"
    notes = [size, f"{together} Worst deviation of {share}: {deviation:.2f} points."]
    notes.append(f"Chosen by {sweep.metric.replace('_', ' ')}; {_chance(images, sweep)}")
    if (n := len(dataset.images) - len(images)) > 0:
        notes.append(f"{n:,} images are left out because they cannot be decoded.")
    if (n := int((images.groupby("sha256")["label"].transform("nunique") > 1).sum())) > 0:
        notes.append(
            f"{n:,} images are exact duplicates with different labels; `hubretrain data check` "
            "lists them."
        )
    return notes


def on_more_images(
    run: Run,
    files: Sequence[Path],
    images: pd.DataFrame,
    sweep: Sweep,
    shortlist: Sequence[str],
    options: ScreenOptions,
) -> tuple[str, ...]:
    """Return a sentence on what more images would bring the first of the shortlist."""
    if not options.learning_curve:
        return ()
    (file,) = (file for file in files if file.stem == shortlist[0])
    probe = Probe.of(
        sweep.metric, options.layers or "all", sweep.class_names, sweep.targets(images)
    )
    curve = learning_curve(file, images, probe, run.screened_folder, options.split.seed)
    return () if curve is None else (curve.sentence(),)


def on_race(run: Run) -> tuple[str, ...]:
    """Return a sentence on modules that were chosen by these images before."""
    if not run.race_file.exists():
        return ()
    sentence = (
        "These modules were chosen by `hubretrain screen` on images of these folds, so the best of "
        "them look a little better than they are; the test split took no part in that."
    )
    return (sentence,)


def _chance(images: pd.DataFrame, sweep: Sweep) -> str:
    """Return the end of a sentence: what chance gives, without a look at any image."""
    labels = sweep.targets(images)
    if sweep.multi_label:
        return (
            f"in any order of the images the average precision of a label is its share of them, "
            f"on average {labels.mean():.1%}."
        )
    majority = images["class_index"].value_counts(normalize=True).max()
    return f"always predicting the largest class is right for {majority:.1%} of the images."


def on_labels(labels: AnyArray, sweep: Sweep) -> list[str]:
    """Return sentences on the labels of images that may have several.

    Args:
        labels: Those of the images outside of the test split; see `Sweep.targets`.
        sweep: What is compared.
    """
    if not sweep.multi_label:
        return []
    per_image, n_positive = labels.sum(axis=1), labels.sum(axis=0)
    without = int((per_image == 0).sum())
    notes = [
        (
            f"Outside of the test split an image has {per_image.mean():.2f} labels on average, at "
            f"most {per_image.max()}; {without:,} images have none."
        )
    ]
    is_few = np.minimum(n_positive, len(labels) - n_positive) < FEWEST_POSITIVES
    if is_few.any():
        few = [f"{sweep.class_names[k]} ({n_positive[k]:,})" for k in np.flatnonzero(is_few)]
        more = f" and {len(few) - MOST_NAMED:,} more" if len(few) > MOST_NAMED else ""
        notes.append(
            f"Fewer than {FEWEST_POSITIVES} images have a label, or all but as few, so that its "
            f"threshold is {UNCHOSEN:g} and its figures say little: "
            f"{', '.join(few[:MOST_NAMED])}{more}."
        )
    return notes
