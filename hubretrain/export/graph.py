"""The graph that is exported: encoded image bytes or pixels in, calibrated probabilities out.

It decodes and resizes as `hubretrain.data.images.decoding` does, so what is served is what was
trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hubretrain.evaluation import SMALLEST_PROBABILITY
from hubretrain.export.manifest import pixels_name
from hubretrain.export.orientation import exif_orientation, upright
from hubretrain.modules import Classifier
from hubretrain.tensorflow import tf


@dataclass(frozen=True)
class Member:
    """One classifier of what is exported.

    Attributes:
        classifier: The model.
        weight: Of its probabilities in the mean; all members' weights sum to 1.
    """

    classifier: Classifier
    weight: float = 1.0

    @property
    def image_size(self) -> int:
        """Height and width of its input, pixels."""
        return self.classifier.backbone.stored.image_size


class ServingGraph(tf.Module):  # type: ignore[misc]
    """Classifiers, the decoder in front of them, and the temperature behind them.

    Args:
        members: Classifiers and their weights.
        class_names: In class order.
        temperature: Of the calibration, see `hubretrain.evaluation.temperature`.

    Attributes:
        sizes: Heights and widths of the members' inputs, each once, ascending.
        pixels: A function of `pixels`, float32 (n_images, size, size, 3), RGB in [0, 1], or
            with several sizes of `pixels_<size>` each. It gives `probabilities` float32
            (n_images, n_classes) and `bottlenecks` float32 (n_images, n_features), the
            members' side by side.
    """

    def __init__(
        self, members: Sequence[Member], class_names: Sequence[str], temperature: float
    ) -> None:
        super().__init__(name="served")
        self.classifiers = [member.classifier for member in members]
        self.weights = [member.weight for member in members]
        self.backbone_objects = [one.backbone.saved_object for one in self.classifiers]
        self.class_names = tf.constant(list(class_names))
        self.temperature = temperature
        self.sizes = tuple(sorted({member.image_size for member in members}))
        names = {size: pixels_name(size, self.sizes) for size in self.sizes}

        def of_one(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._said({self.sizes[0]: pixels})

        def of_several(**pixels: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._said({size: pixels[name] for size, name in names.items()})

        self.pixels = tf.function(of_one if len(self.sizes) == 1 else of_several)
        specs = {
            name: tf.TensorSpec((None, size, size, 3), tf.float32, name=name)
            for size, name in names.items()
        }
        self.signatures_of = {
            "serving_default": self.serve,
            "pixels": self.pixels.get_concrete_function(**specs),
        }

    def _said(self, pixels: Mapping[int, tf.Tensor]) -> dict[str, tf.Tensor]:
        bottlenecks = [
            one.backbone(pixels[one.backbone.stored.image_size], False) for one in self.classifiers
        ]
        probabilities = tf.add_n(
            [
                weight * one.to_probabilities(one.head_logits(features))
                for one, weight, features in zip(
                    self.classifiers, self.weights, bottlenecks, strict=True
                )
            ]
        )
        if self.temperature != 1:
            logits = tf.math.log(tf.maximum(probabilities, SMALLEST_PROBABILITY))
            probabilities = tf.nn.softmax(logits / self.temperature)
        return {
            "probabilities": tf.identity(probabilities, "probabilities"),
            "bottlenecks": tf.concat(bottlenecks, axis=1),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])  # type: ignore[untyped-decorator]
    def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Probabilities of a batch of encoded images."""

        def pixels_of(data: tf.Tensor) -> tuple[tf.Tensor, ...]:
            image = decoded(data)
            return tuple(resized(image, size) / 255.0 for size in self.sizes)

        specs = tuple(tf.TensorSpec((size, size, 3), tf.float32) for size in self.sizes)
        pixels = tf.map_fn(pixels_of, image_bytes, fn_output_signature=specs)
        names = tf.tile(self.class_names[tf.newaxis], [tf.shape(image_bytes)[0], 1])
        said = self._said(dict(zip(self.sizes, pixels, strict=True)))
        return {"probabilities": said["probabilities"], "class_names": names}


def decoded(data: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG, BMP, GIF or WebP bytes in the graph: uint8 (height, width, 3), upright.

    The accurate inverse DCT is the one that Pillow uses; TensorFlow's default is a faster one.
    What TensorFlow cannot decode is an error, never a wrong answer: TIFF, WebP with alpha or
    animation, BMP with a palette. The orientation of a PNG or WebP, which is rare, is not read.
    """

    def jpeg() -> tf.Tensor:
        image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        return upright(image, exif_orientation(data))

    def other() -> tf.Tensor:
        # Of a BMP with a palette TensorFlow would take the indices for grey levels.
        is_bmp = tf.strings.substr(data, 0, 2) == b"BM"
        depth = tf.strings.substr(data, tf.minimum(28, tf.strings.length(data)), 1)
        is_true_colour = (depth == b"\x18") | (depth == b"\x20")
        known = tf.debugging.Assert(~is_bmp | is_true_colour, ["a BMP with a palette"])
        with tf.control_dependencies([known]):
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
