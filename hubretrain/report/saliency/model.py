"""The model that is explained: an export, or the head of a run on its module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hubretrain.errors import RunError
from hubretrain.export import Export, export_of, pixels_name
from hubretrain.heads import ENSEMBLE_NAME, ModuleHeads
from hubretrain.modules import Backbone, Classifier, restore_module
from hubretrain.report.saliency.gradients import Differentiable
from hubretrain.runs import Run
from hubretrain.tensorflow import tf


@dataclass(frozen=True, eq=False)
class ExplainedModel:
    """A model with the names of its classes.

    Attributes:
        title: What it is, for people.
        model: Its scores and gradients.
        class_names: In class order.
    """

    title: str
    model: Differentiable
    class_names: tuple[str, ...]


def open_explained(place: Path, module: str | None = None) -> ExplainedModel:
    """Loads the model of an export folder or of a run.

    Args:
        place: An export folder or a run folder. Of a run its export, where there is one.
        module: The head on this module of the run instead.

    Raises:
        RunError: There is neither an export nor a fitted run, or it cannot be explained.
        HeadError: The head file is missing.
        ModuleError: The module cannot be loaded, or has no gradients.
    """
    if (folder := export_of(place)) is not None and module is None:
        return _of_export(folder)
    return _of_head(Run(place), module)


def _of_export(folder: Path) -> ExplainedModel:
    """The exported graph, from pixels of its largest size: an ensemble's members have several."""
    export = Export.open(folder)
    try:
        loaded = tf.saved_model.load(str(folder))
        pixels = loaded.signatures["pixels"]
    except (OSError, tf.errors.OpError) as error:
        raise RunError(f"{folder} holds no SavedModel ({error}); export again.") from error
    except KeyError as error:
        raise RunError(
            f"{folder} has no signature {error}: an earlier version wrote it; export again, or "
            "explain a head of the run with --head MODULE."
        ) from error
    sizes, largest = export.sizes, max(export.sizes)

    def probabilities(images: tf.Tensor) -> tf.Tensor:
        resized = {
            size: tf.image.resize(images, (size, size), antialias=True)
            for size in sizes
            if size != largest
        }
        given = {pixels_name(size, sizes): resized.get(size, images) for size in sizes}
        return pixels(**given)["probabilities"]

    is_ensemble = export.facts.get("module") == ENSEMBLE_NAME
    model = Differentiable(probabilities, largest, str(folder), with_map=not is_ensemble)
    title = f"{export.facts.get('module', 'the model')} as exported"
    return ExplainedModel(title, model, tuple(export.class_names))


def _of_head(run: Run, module: str | None) -> ExplainedModel:
    fit = run.fit
    name = module or fit.shortlist[0]
    backbone = Backbone(restore_module(name, fit.module(name)))
    head = ModuleHeads.load(run.heads_file(name)).deployed
    classifier = Classifier(backbone, head.kind, head.weight, head.bias)
    model = Differentiable(classifier.probabilities, backbone.stored.image_size, name)
    return ExplainedModel(f"the head of {name}", model, fit.class_names)
