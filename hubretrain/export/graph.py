"""The exported graph: encoded image bytes or pixels in, calibrated probabilities out.

It decodes and resizes as `hubretrain.data.images` does, so that the served model sees what the
trained model saw. The orientation of a JPEG is read from its Exif segment and undone, as Pillow
does it; without that, a photograph taken with an upright phone would be served lying on its side.
Formats: JPEG (ITU-T T.81, annex B), Exif 2.32 (section 4.5), TIFF 6.0 (section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hubretrain.evaluation import SMALLEST_COMPLEMENT, SMALLEST_PROBABILITY
from hubretrain.export.manifest import pixels_name
from hubretrain.export.views import AveragedView
from hubretrain.modules import Classifier
from hubretrain.tensorflow import tf

_MAX_SEGMENTS = 16  # Exif is the first or second segment; no camera writes it later
_HEAD_BYTES = 2 * 65536  # room for one segment of the greatest length, and others
_APP1, _SCAN = 0xE1, 0xDA  # markers: of the Exif segment, and of the compressed image data
_EXIF = (0x45, 0x78, 0x69, 0x66, 0, 0)  # "Exif\0\0"
_ORIENTATION, _SHORT = 0x0112, 3  # TIFF tag and type
_MAX_TAGS = 64


@dataclass(frozen=True)
class Member:
    """One classifier of an export.

    Attributes:
        classifier: The trained model.
        weight: Weight of its probabilities in the mean; the weights of all members sum to 1.
    """

    classifier: Classifier
    weight: float = 1.0

    @property
    def image_size(self) -> int:
        """Height and width of the classifier's input, pixels."""
        return self.classifier.backbone.stored.image_size


# Names of attributes and of functions of both classes are written into the SavedModel.
class MeanOfMembers(tf.Module):  # type: ignore[misc]
    """Classifiers as one function of pixels, before temperature and averaging over views.

    Args:
        members: Classifiers and their weights.

    Attributes:
        sizes: Heights and widths of the members' inputs, each once, ascending.
        one_view: A function of a tuple of pixels, float32 (n_images, size, size, 3), RGB in
            [0, 1], one of each size in the order of `sizes`. It gives `probabilities`, float32
            (n_images, n_classes), and `bottlenecks`, float32 (n_images, n_features), those of all
            members side by side.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__(name="members")
        self.classifiers = [member.classifier for member in members]
        self.weights = [member.weight for member in members]
        self.backbone_objects = [c.backbone.saved_object for c in self.classifiers]
        self.sizes = tuple(sorted({member.image_size for member in members}))
        specs = tuple(tf.TensorSpec((None, size, size, 3), tf.float32) for size in self.sizes)
        self.one_view = tf.function(self._one_view, input_signature=[specs])

    def _one_view(self, pixels: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        of_size = dict(zip(self.sizes, pixels, strict=True))
        bottlenecks = [
            classifier.backbone(of_size[classifier.backbone.stored.image_size], False)
            for classifier in self.classifiers
        ]
        probabilities = tf.add_n(
            [
                weight * classifier.to_probabilities(_logits(classifier, features))
                for classifier, weight, features in zip(
                    self.classifiers, self.weights, bottlenecks, strict=True
                )
            ]
        )
        return {"probabilities": probabilities, "bottlenecks": tf.concat(bottlenecks, axis=1)}


def _logits(classifier: Classifier, features: tf.Tensor) -> tf.Tensor:
    """Return the class scores of bottlenecks, computed in float32 by a quantised model too.

    Features of inner layers differ in scale by orders of magnitude, and so do their weights: 8 bits
    for all of them leave nothing of most (0.20 of flowers right instead of 0.83). LiteRT's
    converter quantises what is constant, so the weights are made to look as if they were not.
    """
    if not classifier.backbone.layer_names:
        return classifier.head_logits(features)
    zero = tf.cast(tf.minimum(tf.shape(features)[0], 0), tf.float32)
    if classifier.hidden_weight is None:
        return tf.linalg.matmul(features, classifier.weight + zero) + classifier.bias
    hidden = tf.linalg.matmul(features, classifier.hidden_weight + zero) + classifier.hidden_bias
    return tf.linalg.matmul(tf.nn.relu(hidden), classifier.weight) + classifier.bias


class ServingGraph(tf.Module):  # type: ignore[misc]
    """The decoder, the views, the classifiers, the mean over the views, and the temperature.

    Args:
        model: A `MeanOfMembers`, or one that was loaded from an export.
        sizes: Heights and widths of its inputs, ascending.
        class_names: Class names in class order.
        temperature: Calibration temperature, see `hubretrain.evaluation.temperature`.
        views: Views whose probabilities are averaged, the image itself first.
        multi_label: Whether each probability is of its own, and rows do not sum to 1.

    Attributes:
        pixels: A function of `pixels`, float32 (n_images, size, size, 3), RGB in [0, 1], or
            with several sizes of `pixels_<size>` each. It gives `probabilities` float32
            (n_images, n_classes) and `bottlenecks` float32 (n_images, n_features), those of the
            image itself.
    """

    def __init__(
        self,
        model: Any,
        sizes: Sequence[int],
        class_names: Sequence[str],
        temperature: float,
        views: Sequence[AveragedView] = (AveragedView(),),
        *,
        multi_label: bool = False,
    ) -> None:
        super().__init__(name="served")
        self.model = model
        self.class_names = tf.constant(list(class_names))
        self.temperature, self._multi_label = temperature, multi_label
        self.sizes, self._views = tuple(sizes), tuple(views)
        names = {size: pixels_name(size, self.sizes) for size in self.sizes}

        def of_one(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._outputs((pixels,))

        def of_several(**pixels: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._outputs(tuple(pixels[name] for name in names.values()))

        self.pixels = tf.function(of_one if len(self.sizes) == 1 else of_several)
        specs = {
            name: tf.TensorSpec((None, size, size, 3), tf.float32, name=name)
            for size, name in names.items()
        }
        self.signatures_of = {
            "serving_default": self.serve,
            "pixels": self.pixels.get_concrete_function(**specs),
        }

    def _outputs(self, pixels: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """Return the probabilities and bottlenecks of pixels by size."""
        n_views = len(self._views)
        if n_views > 1:
            pixels = tuple(
                tf.concat([of_view(images, view) for view in self._views], axis=0)
                for images in pixels
            )
        outputs = self.model.one_view(pixels)
        probabilities, bottlenecks = outputs["probabilities"], outputs["bottlenecks"]
        if n_views > 1:
            n_classes, n_features = probabilities.shape[1], bottlenecks.shape[1]
            of_views = tf.reshape(probabilities, (n_views, -1, n_classes))
            probabilities = tf.reduce_mean(of_views, axis=0)
            bottlenecks = tf.reshape(bottlenecks, (n_views, -1, n_features))[0]
        if self.temperature != 1:
            logits = tf.math.log(tf.maximum(probabilities, SMALLEST_PROBABILITY))
            if self._multi_label:
                logits -= tf.math.log(tf.maximum(1 - probabilities, SMALLEST_COMPLEMENT))
            squashed = tf.nn.sigmoid if self._multi_label else tf.nn.softmax
            probabilities = squashed(logits / self.temperature)
        return {
            "probabilities": tf.identity(probabilities, "probabilities"),
            "bottlenecks": tf.identity(bottlenecks, "bottlenecks"),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])  # type: ignore[untyped-decorator]
    def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the probabilities of a batch of encoded images, and the class names."""

        def pixels_of(data: tf.Tensor) -> tuple[tf.Tensor, ...]:
            image = decoded(data)
            return tuple(resized(image, size) / 255.0 for size in self.sizes)

        specs = tuple(tf.TensorSpec((size, size, 3), tf.float32) for size in self.sizes)
        pixels = tf.map_fn(pixels_of, image_bytes, fn_output_signature=specs)
        names = tf.tile(self.class_names[tf.newaxis], [tf.shape(image_bytes)[0], 1])
        return {"probabilities": self._outputs(pixels)["probabilities"], "class_names": names}


def of_view(images: tf.Tensor, view: AveragedView) -> tf.Tensor:
    """Return one view of each image, as `AveragedView.of` does.

    Args:
        images: float32 (n_images, size, size, 3).
        view: The view.
    """
    if view.area < 1:
        before, distance = view.positions(images.shape[1])
        for axis in (1, 2):
            share = distance.reshape((-1, 1, 1) if axis == 1 else (-1, 1))
            first = tf.gather(images, before, axis=axis)
            images = first + share * (tf.gather(images, before + 1, axis=axis) - first)
    if view.mirror:
        images = tf.reverse(images, [2])
    if view.quarter_turns % 2:
        images = tf.transpose(images, (0, 2, 1, 3))
    axes = [[], [1], [1, 2], [2]][view.quarter_turns]
    return tf.reverse(images, axes) if axes else images


def decoded(data: tf.Tensor) -> tf.Tensor:
    """Decode JPEG, PNG, BMP, GIF or WebP bytes in the graph.

    The accurate inverse DCT is the one that Pillow uses; TensorFlow's default is a faster one.
    What TensorFlow cannot decode (TIFF, WebP with alpha or animation, BMP with a palette) is an
    error, never a wrong answer. The orientation of a PNG or WebP, which is rare, is not read.

    Args:
        data: string scalar.

    Returns:
        uint8 (height, width, 3), RGB, upright.
    """

    def jpeg() -> tf.Tensor:
        image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        return upright(image, exif_orientation(data))

    def other() -> tf.Tensor:
        # Of a BMP with a palette TensorFlow would take the indices for grey levels.
        is_bmp = tf.strings.substr(data, 0, 2) == b"BM"
        depth = tf.strings.substr(data, tf.minimum(28, tf.strings.length(data)), 1)
        is_true_colour = (depth == b"\x18") | (depth == b"\x20")
        check = tf.debugging.Assert(~is_bmp | is_true_colour, ["a BMP with a palette"])
        with tf.control_dependencies([check]):
            return tf.io.decode_image(data, channels=3, expand_animations=False)

    image = tf.cond(tf.io.is_jpeg(data), jpeg, other)
    return tf.ensure_shape(image, [None, None, 3])


def resized(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resize as training does: antialiased triangle filter, rows then columns, 8 bits each.

    Training sums in fixed point, so some pixels differ, by one level at most.

    Returns:
        float32 of shape (size, size, 3), whole numbers in [0, 255].
    """
    width = tf.shape(image)[1]
    for shape in ((size, width), (size, size)):
        image = tf.image.resize(tf.cast(image, tf.float32), shape, antialias=True)
        # A half rounds up, also where float32 sums to a little less than it.
        image = tf.clip_by_value(tf.floor(image + 0.5001), 0.0, 255.0)
    return tf.ensure_shape(image, [size, size, 3])


def exif_orientation(data: tf.Tensor) -> tf.Tensor:
    """Read the orientation of JPEG bytes.

    Args:
        data: string scalar.

    Returns:
        int32 scalar, 1 to 8; 1 where the bytes hold no valid orientation.
    """
    head = tf.strings.substr(data, 0, _HEAD_BYTES)
    codes = tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int32)
    last = tf.size(codes) - 1

    def at(offset: tf.Tensor) -> tf.Tensor:
        return tf.gather(codes, tf.clip_by_value(offset, 0, last))

    def is_exif(offset: tf.Tensor) -> tf.Tensor:
        tagged = [tf.equal(at(offset + 4 + i), code) for i, code in enumerate(_EXIF)]
        return tf.reduce_all([tf.equal(at(offset + 1), _APP1), *tagged])

    def is_to_pass(offset: tf.Tensor, n: tf.Tensor) -> tf.Tensor:
        is_segment = (at(offset) == 0xFF) & (at(offset + 1) != _SCAN) & (offset < last)
        return is_segment & ~is_exif(offset) & (n < _MAX_SEGMENTS)

    def following(offset: tf.Tensor, n: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return offset + 2 + at(offset + 2) * 256 + at(offset + 3), n + 1

    segment, _ = tf.while_loop(is_to_pass, following, (tf.constant(2), tf.constant(0)))
    tiff = segment + 10
    is_little = at(tiff) == 0x49  # "II", else "MM"

    def short(offset: tf.Tensor) -> tf.Tensor:
        first, second = at(offset), at(offset + 1)
        return tf.where(is_little, first + 256 * second, 256 * first + second)

    def long(offset: tf.Tensor) -> tf.Tensor:
        first, second = short(offset), short(offset + 2)
        low, high = tf.where(is_little, first, second), tf.where(is_little, second, first)
        return low + tf.minimum(high, 0x7FFF) * 65536

    table = tiff + tf.minimum(long(tiff + 4), _HEAD_BYTES)
    entries = table + 2 + 12 * tf.range(tf.minimum(short(table), _MAX_TAGS))
    is_orientation = (short(entries) == _ORIENTATION) & (short(entries + 2) == _SHORT)
    orientation = tf.reduce_max(tf.where(is_orientation, short(entries + 8), 0))
    is_valid = is_exif(segment) & (orientation >= 1) & (orientation <= 8)
    return tf.where(is_valid, orientation, 1)


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn an image (height, width, channels) by its Exif orientation, 1 to 8."""
    turned = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)

    def is_one_of(*orientations: int) -> tf.Tensor:
        return tf.reduce_any([tf.equal(orientation, code) for code in orientations])

    turned = tf.cond(is_one_of(2, 3, 6, 7), lambda: turned[:, ::-1], lambda: turned)
    return tf.cond(is_one_of(3, 4, 7, 8), lambda: turned[::-1], lambda: turned)
