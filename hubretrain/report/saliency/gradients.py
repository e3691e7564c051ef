"""Saliency: which pixels a decision rests on.

Every method is of the score of one class: the log of its probability above the mean log, which for
a softmax is its logit above the mean logit.

- Grad-CAM: Selvaraju et al. (2017), https://arxiv.org/abs/1610.02391, equations 1 and 2, on the
  last feature map of the graph.
- SmoothGrad, squared: the mean of squared gradients of noisy copies. Smilkov et al. (2017),
  https://arxiv.org/abs/1706.03825, average the gradients themselves; in the benchmark of Hooker et
  al. (2019), https://arxiv.org/abs/1806.10758, only with the square is it better than chance.
- Integrated gradients: Sundararajan, Taly and Yan (2017), https://arxiv.org/abs/1703.01365,
  equation 1, from a black image, by the midpoint rule.

A map that explains the model must change with it: Adebayo et al. (2018), Sanity checks for saliency
maps, https://arxiv.org/abs/1810.03292; the tests randomise the weights. How well a map explains is
the deletion score: Petsiuk, Das and Saenko (2018), RISE, https://arxiv.org/abs/1806.07421.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.errors import ModuleError, first_line
from hubretrain.tensorflow import frozen, tf

Floats = npt.NDArray[np.float32]

METHODS = ("gradcam", "smoothgrad", "integrated")
N_SAMPLES = 16  # noisy copies
NOISE = 0.15  # of the range, the standard deviation
N_STEPS = 32  # of the integral
BATCH_SIZE = 8
N_DELETIONS = 20
_LEAST = 1e-20  # probability below which its logarithm says nothing


class Differentiable:
    """A model whose scores can be derived by its pixels and by its last feature map.

    The graph is frozen into one without variables or calls, so it makes no difference whether it
    came from a module of TensorFlow 1 or 2, a head, or an export.

    Args:
        probabilities: float32 (n_images, size, size, 3) in [0, 1] to (n_images, n_classes).
        size: Height and width of its input, pixels.
        name: What to call it in errors.
        with_map: Look for a feature map. That of one member would not explain an ensemble.

    Attributes:
        size: Height and width of its input, pixels.
        map_shape: Height, width and channels of the last feature map; None without one.

    Raises:
        ModuleError: The graph cannot be frozen or derived.
    """

    def __init__(
        self,
        probabilities: Callable[[tf.Tensor], tf.Tensor],
        size: int,
        name: str,
        *,
        with_map: bool = True,
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
        wanted = [output.name] + ([feature_map.name] if feature_map is not None else [])

        @tf.function(input_signature=[spec, tf.TensorSpec((None,), tf.int32)])  # type: ignore[untyped-decorator]
        def derive(images: tf.Tensor, classes: tf.Tensor) -> dict[str, tf.Tensor]:
            said, *maps = tf.graph_util.import_graph_def(
                definition, input_map={pixels.name: images}, return_elements=wanted, name="frozen"
            )
            logs = tf.math.log(tf.maximum(said, _LEAST))
            score = tf.gather(logs, classes, batch_dims=1) - tf.reduce_mean(logs, axis=1)
            slopes = tf.gradients(score, [images, *maps])
            found = {"probabilities": said, "score": score, "pixels": slopes[0]}
            if maps:
                found |= {"map": maps[0], "map_slopes": slopes[1]}
            if any(value is None for value in found.values()):
                raise ModuleError(f"{name} has operations that cannot be derived")
            return found

        self._derive = derive

    def derive(self, images: Floats, classes: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """Scores of one class an image, and their gradients.

        Args:
            images: float32 (n_images, size, size, 3), RGB in [0, 1].
            classes: int64 (n_images,).

        Returns:
            `probabilities` (n_images, n_classes), `score` (n_images,), `pixels`, the
            gradient by the pixels, and with a feature map `map` and `map_slopes`.

        Raises:
            ModuleError: An operation has no gradient.
        """
        parts = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = slice(start, start + BATCH_SIZE)
            try:
                found = self._derive(
                    tf.constant(images[batch], tf.float32), tf.constant(classes[batch], tf.int32)
                )
            except (LookupError, tf.errors.OpError) as error:
                why = first_line(error)
                raise ModuleError(f"{self.name} cannot be derived by its pixels: {why}") from error
            parts.append({name: value.numpy() for name, value in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def probabilities(self, images: Floats) -> Floats:
        """What the model says: float32 (n_images, n_classes)."""
        return self.derive(images, np.zeros(len(images), np.int64))["probabilities"]


def saliency(
    model: Differentiable, image: Floats, of_class: int, method: str, seed: int = 0
) -> Floats:
    """The saliency map of one image.

    Args:
        model: The model.
        image: float32 (size, size, 3), RGB in [0, 1].
        of_class: Whose score.
        method: A name of `METHODS`.
        seed: Of SmoothGrad's noise.

    Returns:
        float32 (size, size), at least 0; the larger the more the score rests on the pixel.

    Raises:
        ModuleError: Grad-CAM of a model without a feature map, or one that cannot be derived.
        ValueError: An unknown method.
    """
    if method == "gradcam":
        return grad_cam(model, image, of_class)
    if method == "smoothgrad":
        return smooth_grad(model, image, of_class, seed)
    if method == "integrated":
        return np.asarray(np.abs(integrated_gradients(model, image, of_class).sum(axis=-1)))
    raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")


def grad_cam(model: Differentiable, image: Floats, of_class: int) -> Floats:
    """Grad-CAM, enlarged to the image: float32 (size, size), at least 0."""
    if model.map_shape is None:
        raise ModuleError(
            f"{model.name} has no feature map for Grad-CAM; take smoothgrad or integrated."
        )
    found = model.derive(image[np.newaxis], np.array([of_class]))
    weights = found["map_slopes"][0].mean(axis=(0, 1))
    coarse = np.maximum(found["map"][0] @ weights, 0.0)
    large = tf.image.resize(coarse[..., np.newaxis], (model.size, model.size), method="bicubic")
    return np.maximum(np.asarray(large)[..., 0], 0.0)


def smooth_grad(model: Differentiable, image: Floats, of_class: int, seed: int = 0) -> Floats:
    """The mean square of the gradients of noisy copies, summed over colours: (size, size)."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, NOISE, (N_SAMPLES, *image.shape)).astype(np.float32)
    found = model.derive(image + noise, np.full(N_SAMPLES, of_class))
    return np.asarray(np.square(found["pixels"]).mean(axis=0).sum(axis=-1), np.float32)


def integrated_gradients(
    model: Differentiable, image: Floats, of_class: int, n_steps: int = N_STEPS
) -> Floats:
    """What each pixel adds to the score, from a black image on: float32 (size, size, 3).

    They sum to the score of the image less that of the black one, but for the steps' error.
    """
    at = ((np.arange(n_steps) + 0.5) / n_steps).astype(np.float32)
    found = model.derive(at[:, None, None, None] * image, np.full(n_steps, of_class))
    return np.asarray(image * found["pixels"].mean(axis=0), np.float32)


def deletion_score(model: Differentiable, image: Floats, of_class: int, order: Floats) -> float:
    """Mean probability of a class while pixels are greyed, the most salient first.

    The lower the better the map tells what the model looks at. RISE, section 4.2.

    Args:
        model: The model.
        image: float32 (size, size, 3), RGB in [0, 1].
        of_class: Whose probability.
        order: (size, size), the largest are greyed first.
    """
    ranks = np.argsort(np.argsort(-order.ravel(), kind="stable")).reshape(order.shape)
    shares = np.linspace(0, 1, N_DELETIONS + 1)
    gone = ranks[np.newaxis] < (shares * order.size)[:, None, None]
    copies = np.where(gone[..., np.newaxis], np.float32(image.mean()), image[np.newaxis])
    return float(model.probabilities(copies.astype(np.float32))[:, of_class].mean())


def _last_map(graph: Any, pixels: Any, output: Any) -> Any:
    """The last feature map between pixels and output: float, 4-D, larger than 1 x 1."""
    below = {pixels.op}
    for operation in graph.get_operations():  # in topological order
        if any(tensor.op in below for tensor in operation.inputs):
            below.add(operation)
    needed, waiting = set(), [output.op]
    while waiting:
        operation = waiting.pop()
        if operation not in needed:
            needed.add(operation)
            waiting.extend(tensor.op for tensor in operation.inputs)
    found, convolved = None, set()
    for operation in graph.get_operations():
        if operation not in below or operation not in needed or not operation.outputs:
            continue
        size = _size(operation.outputs[0])
        same = any(t.op in convolved and _size(t) == size for t in operation.inputs)
        if size and ("Conv2D" in operation.type or same):  # as large as the convolution left it
            convolved.add(operation)
            found = operation.outputs[0] if min(size) > 1 else found
    return found


def _size(tensor: Any) -> tuple[int, int] | None:
    """Height and width of a feature map, None of anything else."""
    shape = tensor.shape
    if shape.rank != 4 or tensor.dtype != tf.float32 or None in tuple(shape[1:]):
        return None
    return int(shape[1]), int(shape[2])
