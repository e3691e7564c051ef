"""TensorFlow Serving's REST form of prediction: what it takes and what it gives.

https://www.tensorflow.org/tfx/serving/api_rest#predict_api: `instances` row by row, or
`inputs` by column; bytes as `{"b64": "..."}`; `predictions` or `outputs` come back.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

INPUT, SIGNATURE = "image_bytes", "serving_default"


class FormError(Exception):
    """A request that is none; the message says why."""


class TooManyImagesError(FormError):
    """More images than are taken at once."""


@dataclass(frozen=True)
class PredictRequest:
    """A request, read.

    Attributes:
        images: The bytes of each image.
        by_row: Whether it was asked row by row, and is answered so.
    """

    images: list[bytes]
    by_row: bool

    def answer(self, probabilities: np.ndarray[Any, Any], class_names: list[str]) -> dict[str, Any]:
        """What TensorFlow Serving answers, for probabilities (n_images, n_classes)."""
        rows = probabilities.tolist()
        if self.by_row:
            said = [{"probabilities": row, "class_names": class_names} for row in rows]
            return {"predictions": said}
        return {"outputs": {"probabilities": rows, "class_names": [class_names] * len(rows)}}


def read_asked(body: bytes, n_most: int) -> PredictRequest:
    """Reads the body of a `:predict` request.

    Args:
        body: Of the request.
        n_most: Images that are taken at once.

    Raises:
        TooManyImagesError: There are more.
        FormError: It is no such request.
    """
    # Parsed, the shortest values take 40 times as many bytes. Base64 holds none of these signs, and
    # an image comes with three at most.
    if sum(map(body.count, (b"{", b"[", b","))) > 4 * n_most + 64:
        raise TooManyImagesError(f"more values than {n_most} images have, the most at once")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FormError(f"the body is no JSON ({error}); expected {_EXAMPLE}") from error
    if not isinstance(asked, dict) or ("instances" in asked) == ("inputs" in asked):
        raise FormError(f"expected either instances or inputs, such as {_EXAMPLE}")
    if asked.get("signature_name", SIGNATURE) != SIGNATURE:
        raise FormError(f"signature_name is {asked['signature_name']!r}; expected {SIGNATURE!r}")
    by_row = "instances" in asked
    found = asked["instances"] if by_row else asked["inputs"]
    if not by_row and isinstance(found, dict) and "b64" not in found:
        found = found.get(INPUT)
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, list) or not found:
        raise FormError(f"there are no images; expected {_EXAMPLE}")
    if len(found) > n_most:
        raise TooManyImagesError(f"{len(found)} images; at most {n_most} at once")
    return PredictRequest([_decoded(i, one) for i, one in enumerate(found)], by_row)


_EXAMPLE = '{"instances": [{"b64": "..."}]}, an encoded image each'


def _decoded(number: int, one: Any) -> bytes:
    if isinstance(one, dict) and INPUT in one:
        one = one[INPUT]
    text = one.get("b64") if isinstance(one, dict) else None
    if not isinstance(text, str):
        raise FormError(f"image {number} is not given as {{'b64': '...'}}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormError(f"image {number} is no base64 ({error})") from error
