"""What runs the frozen module over batches of pixels: TensorFlow here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hubretrain.modules.backbone import Backbone
    from hubretrain.tensorflow_door import tf


BATCH_SIZE = 48


class TensorFlowEngine:
    """The module's own graph in TensorFlow, float32.

    Every batch is padded to one fixed size, so that a feature vector does not depend on how
    many images happened to travel with it. Nor does it depend on its place among them if
    ``batch_size`` is a multiple of 48: then every matrix product has a multiple of 48 rows,
    and no row falls to the kernels that finish a remainder (tiles are 8 to 48 rows high), whose
    sums round otherwise. So a resumed cache is bit-equal to an uninterrupted one.

    Args:
        backbone: A loaded module.
        batch_size: Images a forward pass.
    """

    name = "tensorflow"
    precision = "f32"

    def __init__(self, backbone: Backbone, batch_size: int = BATCH_SIZE) -> None:
        from hubretrain.tensorflow_door import tf

        size = backbone.stored.image_size
        self.batch_size = batch_size
        self._pixels = np.zeros((batch_size, size, size, 3), dtype=np.uint8)

        @tf.function(input_signature=[tf.TensorSpec(self._pixels.shape, tf.uint8)])  # type: ignore[untyped-decorator]
        def forward(pixels: tf.Tensor) -> tf.Tensor:
            return backbone(tf.cast(pixels, tf.float32) / 255.0)

        self._forward = forward

    def __call__(self, images: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Bottlenecks of at most ``batch_size`` images.

        Args:
            images: Each uint8 of shape (image_size, image_size, 3), RGB.

        Returns:
            float32 of shape (len(images), n_features).
        """
        for slot, image in zip(self._pixels, images, strict=False):
            slot[:] = image
        self._pixels[len(images) :] = 0
        features: npt.NDArray[np.float32] = self._forward(self._pixels).numpy()
        return features[: len(images)]
