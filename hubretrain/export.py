"""A trained classifier becomes a SavedModel: encoded image bytes in, probabilities out.

The graph decodes and resizes as :mod:`hubretrain.images` does, so what is served is what was
trained. Beside the SavedModel stand ``labels.txt`` and ``export.json``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubretrain.classifier import Classifier
from hubretrain.errors import RunError
from hubretrain.exported import FACTS
from hubretrain.files import write_json
from hubretrain.tensorflow_door import tf


@dataclass(frozen=True)
class Member:
    """One classifier of what is exported.

    Attributes:
        classifier: The model.
        weight: Of its probabilities in the mean; all members' weights sum to 1.
    """

    classifier: Classifier
    weight: float = 1.0


class _Served(tf.Module):  # type: ignore[misc]
    """What is exported: the classifiers behind a decoder, and their class names."""

    def __init__(self, members: Sequence[Member], class_names: Sequence[str]) -> None:
        super().__init__(name="served")
        self.classifiers = [member.classifier for member in members]
        self.weights = [member.weight for member in members]
        self.backbone_objects = [one.backbone.saved_object for one in self.classifiers]
        self.class_names = tf.constant(list(class_names))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])  # type: ignore[untyped-decorator]
    def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Probabilities of a batch of encoded images."""
        sizes = sorted({one.backbone.stored.image_size for one in self.classifiers})

        def pixels_of(data: tf.Tensor) -> tuple[tf.Tensor, ...]:
            image = decoded(data)
            return tuple(resized(image, size) for size in sizes)

        specs = tuple(tf.TensorSpec((size, size, 3), tf.float32) for size in sizes)
        pixels = dict(
            zip(sizes, tf.map_fn(pixels_of, image_bytes, fn_output_signature=specs), strict=True)
        )
        probabilities = tf.add_n(
            [
                weight * one.probabilities(pixels[one.backbone.stored.image_size] / 255.0)
                for one, weight in zip(self.classifiers, self.weights, strict=True)
            ]
        )
        names = tf.tile(self.class_names[tf.newaxis], [tf.shape(image_bytes)[0], 1])
        return {"probabilities": probabilities, "class_names": names}


def decoded(data: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG, BMP or GIF bytes in the graph: uint8 of shape (height, width, 3).

    The accurate inverse DCT is the one that Pillow uses; TensorFlow's default is a faster one.
    """

    def jpeg() -> tf.Tensor:
        return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")

    def other() -> tf.Tensor:
        return tf.io.decode_image(data, channels=3, expand_animations=False)

    image = tf.cond(tf.io.is_jpeg(data), jpeg, other)
    return tf.ensure_shape(image, [None, None, 3])


def resized(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes as training did: antialiased triangle filter, rows then columns, 8 bits each.

    That sums in fixed point, so some pixels differ, by one level at most.

    Returns:
        float32 of shape (size, size, 3), whole numbers in [0, 255].
    """
    width = tf.shape(image)[1]
    for shape in ((size, width), (size, size)):
        image = tf.image.resize(tf.cast(image, tf.float32), shape, antialias=True)
        # A half rounds up, also where float32 sums to a little less than it.
        image = tf.clip_by_value(tf.floor(image + 0.5001), 0.0, 255.0)
    return tf.ensure_shape(image, [size, size, 3])


def export_saved_model(
    classifier: Classifier, class_names: Sequence[str], folder: Path, facts: Mapping[str, Any]
) -> None:
    """Writes the export folder of one model, whole or not at all.

    Args:
        classifier: The trained model.
        class_names: In class order.
        folder: Where to; what is there is replaced.
        facts: What else ``export.json`` is to hold.

    Raises:
        RunError: The folder cannot be written.
    """
    stored = classifier.backbone.stored
    known = {
        "module": stored.name,
        "module_sha256": stored.sha256,
        "image_size": stored.image_size,
        "head": classifier.kind,
    }
    _export([Member(classifier)], class_names, folder, {**known, **facts})


def export_ensemble(
    members: Sequence[Member], class_names: Sequence[str], folder: Path, facts: Mapping[str, Any]
) -> None:
    """Writes the export folder of an ensemble: the weighted mean of its members' probabilities.

    It is served as one model is: image bytes in, probabilities out; each member gets the image in
    its own size.

    Args:
        members: Classifiers and their weights.
        class_names: In class order.
        folder: Where to; what is there is replaced.
        facts: What else ``export.json`` is to hold.

    Raises:
        RunError: The folder cannot be written.
    """
    known = {
        "module": "ensemble",
        "members": [
            {
                "module": one.classifier.backbone.stored.name,
                "module_sha256": one.classifier.backbone.stored.sha256,
                "image_size": one.classifier.backbone.stored.image_size,
                "head": one.classifier.kind,
                "weight": one.weight,
            }
            for one in members
        ],
    }
    _export(members, class_names, folder, {**known, **facts})


def _export(
    members: Sequence[Member], class_names: Sequence[str], folder: Path, facts: Mapping[str, Any]
) -> None:
    served = _Served(members, class_names)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise RunError(
            f"{folder}/ cannot be written ({error.strerror}); mend its rights or make room."
        ) from error
    try:
        tf.saved_model.save(served, str(aside / "new"), {"serving_default": served.serve})
        text = "".join(f"{name}\n" for name in class_names)
        (aside / "new" / "labels.txt").write_text(text, encoding="utf-8")
        write_json(aside / "new" / FACTS, {"class_names": list(class_names), **facts})
        if folder.exists():
            os.replace(folder, aside / "old")
        os.replace(aside / "new", folder)
    except (OSError, tf.errors.OpError) as error:
        raise RunError(
            f"{folder}/ cannot be written ({error}); make room and try again."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
