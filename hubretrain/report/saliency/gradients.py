"""Saliency: which pixels a prediction rests on.

Every method explains the score of one class: the log of its probability above the mean log, which
for a softmax is its logit above the mean logit. Of several labels per image it is the log-odds of
one label, which for a sigmoid is its logit.

- Grad-CAM: Selvaraju et al. (2017), https://arxiv.org/abs/1610.02391, equations 1 and 2, on the
  last feature map of the graph.
- Squared SmoothGrad: the mean of squared gradients of noisy copies. Smilkov et al. (2017),
  https://arxiv.org/abs/1706.03825, average the gradients themselves; in the benchmark of Hooker et
  al. (2019), https://arxiv.org/abs/1806.10758, only the squared variant is better than chance.
- Integrated gradients: Sundararajan, Taly and Yan (2017), https://arxiv.org/abs/1703.01365,
  equation 1, from a black image, by the midpoint rule.

A map that explains the model must change with it: Adebayo et al. (2018), Sanity checks for saliency
maps, https://arxiv.org/abs/1810.03292; the tests randomise the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.arrays import Float32Array
from hubretrain.errors import ModuleError, first_line
from hubretrain.evaluation import SMALLEST_COMPLEMENT
from hubretrain.tensorflow import frozen, tf

METHODS = ("gradcam", "smoothgrad", "integrated")
N_SAMPLES = 16  # noisy copies per image
NOISE = 0.15  # standard deviation, as a share of the range of pixels
N_STEPS = 32  # of the integral
BATCH_SIZE = 8
_STATISTICS = {"SquaredDifference"}  # of a map's deviation over positions, not a map itself
_SMALLEST_PROBABILITY = 1e-20  # below it the logarithm carries no information


class Differentiable:
    """A model whose scores can be differentiated by its pixels and its last feature map.

    The graph is frozen into one without variables or calls, so it makes no difference whether it
    came from a module of TensorFlow 1 or 2, a head, or an export.

    Args:
        probabilities: Function of float32 (n_images, size, size, 3) in [0, 1] that returns
            (n_images, n_classes).
        size: Height and width of its input, pixels.
        name: Name of the model in errors.
        with_map: Whether to look for a feature map. That of one member would not explain an
            ensemble.
        multi_label: Whether an image may have several labels, each with a probability of its own.

    Attributes:
        size: Height and width of its input, pixels.
        map_shape: Height, width and channels of the last feature map; None without one.

    Raises:
        ModuleError: The graph cannot be frozen or differentiated.
    """

    def __init__(
        self,
        probabilities: Callable[[tf.Tensor], tf.Tensor],
        size: int,
        name: str,
        *,
        with_map: bool = True,
        multi_label: bool = False,
    ) -> None:
        self.size, self.name = size, name
        spec = tf.TensorSpec((None, size, size, 3), tf.float32)
        try:
            whole = tf.function(probabilities).get_concrete_function(spec)
            constant = frozen(whole)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise ModuleError(
                f"the graph of {name} cannot be frozen: {first_line(error)}"
            ) from error
        (pixels,), (output,) = constant.inputs, constant.outputs
        feature_map = _last_map(constant.graph, pixels, output) if with_map else None
        self.map_shape = None if feature_map is None else tuple(feature_map.shape[1:])
        definition = constant.graph.as_graph_def()
        names = [output.name] + ([feature_map.name] if feature_map is not None else [])

        @tf.function(input_signature=[spec, tf.TensorSpec((None,), tf.int32)])  # type: ignore[untyped-decorator]
        def derive(images: tf.Tensor, classes: tf.Tensor) -> dict[str, tf.Tensor]:
            probs, *maps = tf.graph_util.import_graph_def(
                definition, input_map={pixels.name: images}, return_elements=names, name="frozen"
            )
            logs = tf.math.log(tf.maximum(probs, _SMALLEST_PROBABILITY))
            score = tf.gather(logs, classes, batch_dims=1)
            if multi_label:
                against = tf.gather(1 - probs, classes, batch_dims=1)
                score -= tf.math.log(tf.maximum(against, SMALLEST_COMPLEMENT))
            else:
                score -= tf.reduce_mean(logs, axis=1)
            gradients = tf.gradients(score, [images, *maps])
            results = {"probabilities": probs, "score": score, "pixels": gradients[0]}
            if maps:
                results |= {"map": maps[0], "map_gradients": gradients[1]}
            if any(value is None for value in results.values()):
                raise ModuleError(f"{name} has operations without gradients")
            return results

        self._derive = derive

    def derive(
        self, images: Float32Array, classes: npt.NDArray[np.int64]
    ) -> dict[str, Float32Array]:
        """Return the score of one class per image, and its gradients.

        Args:
            images: float32 (n_images, size, size, 3), RGB in [0, 1].
            classes: int64 (n_images,), the class of each image whose score is differentiated.

        Returns:
            `probabilities` (n_images, n_classes), `score` (n_images,), `pixels`, the gradient by
            the pixels, and of a model with a feature map `map` and `map_gradients`.

        Raises:
            ModuleError: An operation has no gradient.
        """
        parts = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = slice(start, start + BATCH_SIZE)
            try:
                results = self._derive(
                    tf.constant(images[batch], tf.float32), tf.constant(classes[batch], tf.int32)
                )
            except (LookupError, tf.errors.OpError) as error:
                reason = first_line(error)
                raise ModuleError(
                    f"{self.name} cannot be differentiated by its pixels: {reason}"
                ) from error
            parts.append({name: value.numpy() for name, value in results.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def probabilities(self, images: Float32Array) -> Float32Array:
        """Return the model's probabilities: float32 (n_images, n_classes)."""
        return self.derive(images, np.zeros(len(images), np.int64))["probabilities"]


def saliency(
    model: Differentiable, image: Float32Array, of_class: int, method: str, seed: int = 0
) -> Float32Array:
    """Return the saliency map of one image.

    Args:
        model: The model.
        image: float32 (size, size, 3), RGB in [0, 1].
        of_class: Index of the class whose score is explained.
        method: One of `METHODS`.
        seed: Random seed of SmoothGrad's noise.

    Returns:
        float32 (size, size), at least 0; the larger, the more the score rests on the pixel.

    Raises:
        ModuleError: The model has no feature map for Grad-CAM, or an operation has no gradient.
        ValueError: The method is unknown.
    """
    if method == "gradcam":
        return grad_cam(model, image, of_class)
    if method == "smoothgrad":
        return smooth_grad(model, image, of_class, seed)
    if method == "integrated":
        return np.asarray(np.abs(integrated_gradients(model, image, of_class).sum(axis=-1)))
    raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")


def grad_cam(model: Differentiable, image: Float32Array, of_class: int) -> Float32Array:
    """Return Grad-CAM, enlarged to the image: float32 (size, size), at least 0."""
    if model.map_shape is None:
        raise ModuleError(
            f"{model.name} has no feature map for Grad-CAM; use smoothgrad or integrated."
        )
    results = model.derive(image[np.newaxis], np.array([of_class]))
    weights = results["map_gradients"][0].mean(axis=(0, 1))  # equation 1
    coarse = np.maximum(results["map"][0] @ weights, 0.0)  # equation 2
    large = tf.image.resize(coarse[..., np.newaxis], (model.size, model.size), method="bicubic")
    return np.maximum(np.asarray(large)[..., 0], 0.0)


def smooth_grad(
    model: Differentiable, image: Float32Array, of_class: int, seed: int = 0
) -> Float32Array:
    """Return the mean squared gradient of noisy copies, summed over colours: (size, size)."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, NOISE, (N_SAMPLES, *image.shape)).astype(np.float32)
    gradients = model.derive(image + noise, np.full(N_SAMPLES, of_class))["pixels"]
    return np.asarray(np.square(gradients).mean(axis=0).sum(axis=-1), np.float32)


def integrated_gradients(
    model: Differentiable, image: Float32Array, of_class: int, n_steps: int = N_STEPS
) -> Float32Array:
    """Return what each pixel adds to the score of a black image: float32 (size, size, 3).

    The values sum to the score of the image minus that of the black one, up to the error of the
    midpoint rule.
    """
    shares = ((np.arange(n_steps) + 0.5) / n_steps).astype(np.float32)
    gradients = model.derive(shares[:, None, None, None] * image, np.full(n_steps, of_class))
    return np.asarray(image * gradients["pixels"].mean(axis=0), np.float32)


def _last_map(graph: Any, pixels: Any, output: Any) -> Any:
    """Return the last feature map between pixels and output: float, 4-D, larger than 1 x 1.

    The last is the one behind the most convolutions, wherever it stands among the operations: a
    head on features of all layers reads the earlier ones after it.
    """
    on_path = _followers(graph, pixels) & _ancestors(output)
    last, most, convolved = None, 0, set()
    depth: dict[Any, int] = {}
    for operation in graph.get_operations():  # in topological order
        if operation not in on_path or not operation.outputs:
            continue
        is_convolution = "Conv2D" in operation.type
        depth[operation] = is_convolution + max(
            (depth.get(t.op, 0) for t in operation.inputs), default=0
        )
        size = _size(operation.outputs[0])
        keeps_size = any(t.op in convolved and _size(t) == size for t in operation.inputs)
        if not size or not (is_convolution or keeps_size) or operation.type in _STATISTICS:
            continue
        convolved.add(operation)  # such as an activation after a convolution
        if min(size) > 1 and depth[operation] >= most and operation.type != "Identity":
            last, most = operation.outputs[0], depth[operation]
    return last


def _followers(graph: Any, tensor: Any) -> set[Any]:
    """Return the operations that depend on a tensor, and its own."""
    followers = {tensor.op}
    for operation in graph.get_operations():  # in topological order
        if any(source.op in followers for source in operation.inputs):
            followers.add(operation)
    return followers


def _ancestors(tensor: Any) -> set[Any]:
    """Return the operations that a tensor depends on, and its own."""
    ancestors, waiting = set(), [tensor.op]
    while waiting:
        operation = waiting.pop()
        if operation not in ancestors:
            ancestors.add(operation)
            waiting.extend(source.op for source in operation.inputs)
    return ancestors


def _size(tensor: Any) -> tuple[int, int] | None:
    """Return height and width of a feature map, None for any other tensor."""
    shape = tensor.shape
    if shape.rank != 4 or tensor.dtype != tf.float32 or None in tuple(shape[1:]):
        return None
    return int(shape[1]), int(shape[2])
