"""The model that is explained: an export, or the fitted head of a module of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hubretrain.arrays import Float32Array
from hubretrain.data import reading_as
from hubretrain.data.images import Reading
from hubretrain.errors import RunError
from hubretrain.evaluation import LabelThresholds, Rule, at_temperature
from hubretrain.export import Export, export_of, pixels_name
from hubretrain.heads import ENSEMBLE_NAME, ModuleHeads
from hubretrain.modules import Backbone, Classifier, restore_module
from hubretrain.report.saliency.gradients import Differentiable
from hubretrain.runs import Run
from hubretrain.tensorflow import tf

MOST_LABELS = 3  # of an image, that are explained unless one is named


@dataclass(frozen=True, eq=False)
class ExplainedModel:
    """A model with the names of its classes.

    Attributes:
        title: Description of the model for people.
        model: Scores and gradients of the model.
        class_names: Class names in class order.
        temperature: Temperature that `model` lacks. It scales scores, and leaves maps as they are.
        reading: How image files are read.
        multi_label: Whether an image may have several labels.
        rule: How its probabilities become labels; None where an image has one class.
    """

    title: str
    model: Differentiable
    class_names: tuple[str, ...]
    temperature: float = 1.0
    reading: Reading = Reading()
    multi_label: bool = False
    rule: LabelThresholds | None = None

    def probabilities(self, images: Float32Array) -> Float32Array:
        """Return probabilities as an export gives them, float32 (n_images, n_classes)."""
        probs = self.model.probabilities(images)
        return at_temperature(probs, self.temperature, self.multi_label)

    def shown(self, probs: Float32Array) -> list[int]:
        """Return the classes of an image that are explained by default, the most probable first.

        That is the top-1 class; where an image may have several labels, those that are decided on,
        at most `MOST_LABELS`, or the most probable where there are none.

        Args:
            probs: float32 (n_classes,).
        """
        order = np.argsort(-probs, kind="stable").tolist()
        if self.rule is None:
            return order[:1]
        is_decided = self.rule.decide(probs[np.newaxis].astype(np.float64))[0]
        return [c for c in order if is_decided[c]][:MOST_LABELS] or order[:1]


def open_explained(folder: Path, module: str | None = None) -> ExplainedModel:
    """Load the model of an export folder or of a run.

    Args:
        folder: An export folder or a run folder. Of a run its export is loaded, if it has one.
        module: The module of the run whose fitted head is loaded instead of the export.

    Raises:
        RunError: The folder holds neither an export nor a fitted run, or it cannot be explained.
        HeadError: The head file is missing.
        ModuleError: The module cannot be loaded, or has no gradients.
    """
    if (export := export_of(folder)) is not None and module is None:
        return _open_export(export)
    return _open_head(Run(folder), module)


def _open_export(folder: Path) -> ExplainedModel:
    """Load an exported graph, a function of pixels of the largest of its members' sizes."""
    export = Export.open(folder)
    if not export.has("savedmodel"):
        raise RunError(
            f"{folder} is the export of an ONNX module, which has no gradients, so it cannot be "
            "explained; name another module of the run in `head`."
        )
    try:
        loaded = tf.saved_model.load(str(folder))
        pixels = loaded.signatures["pixels"]
    except (OSError, tf.errors.OpError) as error:
        raise RunError(f"{folder} holds no SavedModel ({error}); export again.") from error
    except KeyError as error:
        raise RunError(
            f"{folder} has no signature {error}: an earlier version wrote it; export again, or "
            "name a module of the run in `head`."
        ) from error
    sizes, largest = export.sizes, max(export.sizes)

    def probabilities(images: tf.Tensor) -> tf.Tensor:
        resized = {
            size: tf.image.resize(images, (size, size), antialias=True)
            for size in sizes
            if size != largest
        }
        inputs = {pixels_name(size, sizes): resized.get(size, images) for size in sizes}
        return pixels(**inputs)["probabilities"]

    # A feature map of one member, or of one view, would not explain the mean.
    is_mean = export.manifest.get("module") == ENSEMBLE_NAME or export.n_views > 1
    model = Differentiable(
        probabilities,
        largest,
        str(folder),
        with_map=not is_mean,
        multi_label=export.multi_label,
    )
    return ExplainedModel(
        f"{export.manifest.get('module', 'the model')} as exported",
        model,
        tuple(export.class_names),
        reading=export.reading,
        multi_label=export.multi_label,
        rule=_rule_of_labels(export.rule),
    )


def _rule_of_labels(rule: Rule) -> LabelThresholds | None:
    return rule if isinstance(rule, LabelThresholds) else None


def _open_head(run: Run, module: str | None) -> ExplainedModel:
    fit = run.fit
    name = module or fit.shortlist[0]
    record = fit.module(name)  # refuses one that was not fitted before its head file is looked for
    head = ModuleHeads.load(run.checked_heads(name)).deployed
    backbone = Backbone(restore_module(name, record), head.layers)
    arrays = (head.weight, head.bias, head.hidden_weight, head.hidden_bias)
    classifier = Classifier(backbone, head.kind, *arrays, multi_label=head.multi_label)
    size, multi_label = backbone.stored.image_size, head.multi_label
    return ExplainedModel(
        f"the head of {name}",
        Differentiable(classifier.probabilities, size, name, multi_label=multi_label),
        fit.class_names,
        head.calibration.temperature,
        reading_as(fit.data_options),
        multi_label,
        _rule_of_labels(head.rule.at_temperature(head.calibration.temperature)),
    )
