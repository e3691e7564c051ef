"""A SavedModel's network as one function: RGB images in NHWC to feature vectors."""

from __future__ import annotations

from typing import Any

from hubretrain.errors import ModuleError
from hubretrain.modules.adapting.functions import (
    choose_function,
    functions_of,
    specs_of,
    vector_output,
)
from hubretrain.modules.adapting.images import ImageForm
from hubretrain.tensorflow import tf


class Network:
    """The function of a loaded SavedModel that turns images into feature vectors.

    A map of features becomes its mean over the positions, which are the axes that the layout of the
    input says.

    Args:
        loaded: What loading the SavedModel gave.
        handle: The module's handle, for messages.

    Attributes:
        takes_training: Whether it can be run as in training.
        form: What images it takes.
        image_size: Height and width that some function of the module fixes, or 0.

    Raises:
        ModuleError: No function takes images that can be made of square RGB images.
    """

    def __init__(self, loaded: Any, handle: str) -> None:
        self._handle, self._chosen = handle, choose_function(loaded, handle)
        self.takes_training = self._chosen.takes_training
        self.form = ImageForm.of(self._chosen.spec, handle)
        self.image_size = self.form.size or _size_elsewhere(loaded)

    def __call__(
        self, images: tf.Tensor, training: bool, value_range: tuple[float, float]
    ) -> tf.Tensor:
        """Return the features of images.

        Args:
            images: float32 of shape (n_images, height, width, 3), RGB in [0, 1].
            training: Whether to run it as in training, if it can be.
            value_range: Least and largest value of its input.

        Returns:
            float32, of shape (n_images, n_features) from a feature vector module.

        Raises:
            ModuleError: It gives several outputs, or no floating numbers.
        """
        inputs = self.form.take(images, value_range)
        if not self.form.one_by_one:
            return self._vectors(inputs, training)
        return tf.map_fn(
            lambda image: self._vectors(image[None], training)[0],
            inputs,
            fn_output_signature=tf.float32,
        )

    def _vectors(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        call = self._chosen.call
        if self._chosen.argument is not None:
            outputs = call(**{self._chosen.argument: inputs})
        else:
            outputs = call(inputs, training) if self.takes_training else call(inputs)
        output = vector_output(outputs, self._handle)
        if not output.dtype.is_floating:
            raise ModuleError(
                f"{self._handle} gives {output.dtype.name}; expected features, floating numbers."
            )
        output = tf.cast(output, tf.float32)
        if output.shape.rank != 4:
            return output
        _, *axes = output.shape.as_list()
        # (n, 1, 1, d) is a vector whatever the layout.
        maps_first = self.form.channels_first and axes[:2] != [1, 1]
        return tf.reduce_mean(output, (2, 3) if maps_first else (1, 2))


def _size_elsewhere(loaded: Any) -> int:
    """Return height and width that any function of the module fixes, or 0."""
    for spec in specs_of(functions_of(loaded)):
        if spec.shape.rank == 4 and spec.shape[1] and spec.shape[1] == spec.shape[2]:
            return int(spec.shape[1])
    return 0
