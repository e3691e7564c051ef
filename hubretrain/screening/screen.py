"""Screening of one module: all heads of the sweep fitted, the best chosen without selection bias.

The sweep is {last layer, all layers} x {view 0, all views} x kinds of heads x class weights x l2,
each with every strength of logit adjustment. The result holds probabilities by name, each image's
from heads that were not fitted on it (folds). Those of one candidate, the best by all images, serve
to calibrate it, and for what compares the probabilities of images with one another:

    deployed             probabilities of the chosen candidate
    deployed_adjusted    the same after its decision rule
    deployed_averaged    as deployed, averaged over views
    deployed_averaged_adjusted
                         the same after its logit adjustment
    ensemble_member      as deployed, of the candidate with the best log loss
    ensemble_member_averaged
                         the same, averaged over views

Where an image may have several labels, the rule is a threshold for each; those of `adjusted` are
chosen on the other half, those of `deployed_adjusted` on all images. The others come from heads
that were not chosen on the image either (see `evaluation.selection`):

    unadjusted           probabilities of the chosen head
    adjusted             the same after its logit adjustment: the largest is the decision
    averaged_unadjusted  as unadjusted, averaged over views
    averaged_adjusted    the same after its logit adjustment
    nested_unadjusted    as unadjusted, of a head that was chosen by others, fitted without the
                         image's half: where modules compete
    nested_adjusted      the same after its logit adjustment
    member               as nested_unadjusted, of the head with the best log loss: for ensembles
    member_averaged      as member, averaged over views
    member_within        of heads that were fitted and chosen on the image's own half alone, by log
                         loss: what an ensemble is chosen by that is evaluated on the other half
    with_E, without_E    adjusted, of the best head with and without what effect E names
    nearest              the nearest neighbour's class
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.bottlenecks import Bottlenecks
from hubretrain.evaluation import N_PARTS, Predictions
from hubretrain.heads import DECAYS, N_COMPONENTS, ModuleHeads, Projection
from hubretrain.progress import PERCENT, Bar
from hubretrain.screening.candidates import ALL_LAYERS, LAST_LAYER
from hubretrain.screening.fitting import PATIENCE, TOL, ModuleFitting
from hubretrain.screening.options import ScreenOptions
from hubretrain.screening.result import ScreenResult
from hubretrain.screening.selection import Outside, Selection, reach_of
from hubretrain.screening.sweep import MLP, Sweep

PROBE_L2 = (1.0, 10.0, 100.0, 1000.0, 10000.0)
SHARE_OF_CHOICE = 0.5  # of the time: two halves of the images, in two folds each, to choose by


def identity_of(file: Path, images: pd.DataFrame, sweep: Sweep) -> str:
    """Return the digest of all that the screening of a module depends on."""
    with Bottlenecks(file) as bottlenecks:
        bottlenecks.check_module(file.stem)
        attributes = {str(name): str(value) for name, value in bottlenecks.attributes.items()}
        digests = bottlenecks.digests
        n_views = dict(zip(bottlenecks.sha256s, bottlenecks.n_views_of.tolist(), strict=True))
    label = "label" if sweep.multi_label else "class_index"
    columns = ["sha256", label, "fold", "cluster"]
    table = images[columns].assign(n_views=images["sha256"].map(n_views))
    constants = [sweep.l2_beyond, PATIENCE, TOL, N_PARTS, DECAYS, N_COMPONENTS]
    compared = asdict(sweep)
    if not sweep.multi_label:
        del compared["multi_label"]
    everything = json.dumps([attributes, digests, compared, *constants], default=str)
    digest = hashlib.sha256(everything.encode())
    digest.update(table.to_csv(index=False).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Probe:
    """Few heads that are fitted in seconds, to tell which modules a fit is worth.

    They are softmax heads (logistic ones where an image may have several labels) on view 0, of all
    layers where these are cached, with the decision rules that the metric of choice asks for.

    Attributes:
        sweep: What is fitted.
    """

    sweep: Sweep

    @classmethod
    def of(
        cls, metric: str | None, layers: str, class_names: tuple[str, ...], labels: AnyArray
    ) -> Probe:
        """Return the probe for a data set.

        Args:
            metric: Metric of choice; None for that of a fit.
            layers: `last` or `all`.
            class_names: Class names in class order.
            labels: int (n_images,), of the images outside of the test split; bool (n_images,
                n_classes) where an image may have several.

        Raises:
            HeadError: There is no such metric.
        """
        options = ScreenOptions(
            metric=metric,
            class_weights=(None,),
            l2=PROBE_L2,
            views=False,
            layers=ALL_LAYERS if layers == "all" else LAST_LAYER,
            heads=("softmax",) if labels.ndim == 1 else ("logistic",),
        )
        return cls(Sweep.of(options, class_names, labels))

    @property
    def metric(self) -> str:
        """Name of the metric of choice."""
        return self.sweep.metric

    def targets(self, images: pd.DataFrame) -> AnyArray:
        """Return what images are labelled as: see `Sweep.targets`."""
        return self.sweep.targets(images)

    def predictions(self, file: Path, images: pd.DataFrame) -> Predictions:
        """Return the cross-fitted predictions of a module, as those of a row of the leaderboard.

        Args:
            file: Bottleneck file of the module.
            images: See `screen`; each is to be validated by some fold.

        Raises:
            CacheError: The file lacks images.
            HeadError: The heads cannot be fitted.
        """
        with Bottlenecks(file) as bottlenecks:
            sweep = self.sweep
            if not bottlenecks.has_layers:  # of a module without feature maps, the last are all
                sweep = replace(sweep, layers=(LAST_LAYER,))
            fitting = ModuleFitting(bottlenecks, images, sweep)
            fitting.fit(f"heads on {file.stem}")
            return Selection(fitting).chosen()


def screen(
    file: Path,
    images: pd.DataFrame,
    sweep: Sweep,
    projections: dict[str, Projection] | None = None,
) -> tuple[ScreenResult, ModuleHeads]:
    """Fit every head of one module on every fold and choose.

    Args:
        file: Bottleneck file of the module.
        images: The images outside of the test split: sha256, class_index (or label, where an image
            may have several), cluster and fold, which is below 0 where every fold trains on the
            image.
        sweep: What to compare.
        projections: See `ModuleFitting`.

    Returns:
        The result, and the heads that are kept.

    Raises:
        CacheError: The cache is not finished, or lacks images.
        HeadError: The heads cannot be fitted.
    """
    started = time.monotonic()
    with Bottlenecks(file) as bottlenecks:
        fitting, outside = _fitted(bottlenecks, images, sweep, projections)
        selection = Selection(fitting, outside)
        heads = selection.heads()
        predictions = selection.predictions() | fitting.nearest()
        of_choice = selection.about()
        about = {
            **of_choice,
            "n_heads": sum(int((~path.stopped_early).sum()) for path in fitting.paths.values()),
            "n_features": bottlenecks.n_features_of(of_choice["chosen"]["layers"]),
            "n_views_averaged": fitting.n_views_averaged,
            "lacks_layers": bottlenecks.lacks_layers,
            "hints": fitting.hints(),
            "module": _attributes(bottlenecks),
            "seconds_to_fit": round(time.monotonic() - started, 2),
        }
    table = selection.table()
    table.insert(0, "module", file.stem)
    result = ScreenResult(
        file.stem,
        identity_of(file, images, sweep),
        about,
        predictions,
        table,
        selection.chosen_by(),
    )
    return result, heads


def _fitted(
    bottlenecks: Bottlenecks,
    images: pd.DataFrame,
    sweep: Sweep,
    projections: dict[str, Projection] | None,
) -> tuple[ModuleFitting, list[Outside] | None]:
    """Return the fitted heads of all images, and what those without each part tell, in one bar."""
    name = bottlenecks.path.stem
    what = f"fitting {'networks on ' if sweep.kinds == (MLP,) else ''}{name}"
    outside: list[Outside] | None = None
    with Bar(what, 100, PERCENT) as bar:
        if images["fold"].max() > 0:
            outside = []
            for part in range(N_PARTS):
                with bar.part(SHARE_OF_CHOICE / N_PARTS):
                    outside.append(Outside.of_part(bottlenecks, images, sweep, part))
        with bar.part(1 - SHARE_OF_CHOICE if outside else 1):
            reach = reach_of(outside or ())
            fitting = ModuleFitting(bottlenecks, images, sweep, projections, reach)
            fitting.fit(what)
    return fitting, outside


def _attributes(bottlenecks: Bottlenecks) -> dict[str, Any]:
    """Return the attributes of a bottleneck file, with its views per image."""
    n_views = bottlenecks.n_views_of[bottlenecks.n_views_of > 0]
    attributes = {str(name): value for name, value in bottlenecks.attributes.items()}
    return attributes | {"n_views": int(n_views.min()), "minority_views": int(n_views.max())}
