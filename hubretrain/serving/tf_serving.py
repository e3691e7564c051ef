"""Requests and answers of TensorFlow Serving's REST API for predictions.

https://www.tensorflow.org/tfx/serving/api_rest#predict_api: `instances` in row format or `inputs`
in column format; bytes as `{"b64": "..."}`; answered with `predictions` or `outputs`.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

INPUT, SIGNATURE = "image_bytes", "serving_default"
_EXAMPLE = '{"instances": [{"b64": "..."}]}, one encoded image per instance'


class RequestFormatError(Exception):
    """A body that is no valid request; the message says why."""


class TooManyImagesError(RequestFormatError):
    """More images than one request may have."""


@dataclass(frozen=True)
class PredictRequest:
    """A `:predict` request.

    Attributes:
        images: The bytes of each encoded image.
        by_row: Whether the request is in row format, and is answered in it.
    """

    images: list[bytes]
    by_row: bool

    def answer(self, probs: np.ndarray[Any, Any], class_names: list[str]) -> dict[str, Any]:
        """Return the answer of TensorFlow Serving for probabilities (n_images, n_classes)."""
        rows = probs.tolist()
        if self.by_row:
            predictions = [{"probabilities": row, "class_names": class_names} for row in rows]
            return {"predictions": predictions}
        return {"outputs": {"probabilities": rows, "class_names": [class_names] * len(rows)}}


def read_request(body: bytes, max_images: int) -> PredictRequest:
    """Read the body of a `:predict` request.

    Args:
        body: The body, JSON.
        max_images: Largest number of images per request.

    Raises:
        TooManyImagesError: The request has more images.
        RequestFormatError: The body is no valid request.
    """
    # Parsed JSON takes up to 40 times as many bytes, so values are counted before: base64 holds
    # none of these characters, and an image comes with three at most.
    if sum(map(body.count, (b"{", b"[", b","))) > 4 * max_images + 64:
        raise TooManyImagesError(f"more values than {max_images} images have, the most at once")
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestFormatError(
            f"the body is not valid JSON ({error}); expected {_EXAMPLE}"
        ) from error
    if not isinstance(request, dict) or ("instances" in request) == ("inputs" in request):
        raise RequestFormatError(f"expected either instances or inputs, such as {_EXAMPLE}")
    signature = request.get("signature_name", SIGNATURE)
    if signature != SIGNATURE:
        raise RequestFormatError(f"signature_name is {signature!r}; expected {SIGNATURE!r}")
    by_row = "instances" in request
    images = request["instances"] if by_row else request["inputs"]
    if not by_row and isinstance(images, dict) and "b64" not in images:
        images = images.get(INPUT)  # inputs by name, of which there is one
    if isinstance(images, dict):
        images = [images]  # a single image need not be in a list
    if not isinstance(images, list) or not images:
        raise RequestFormatError(f"there are no images; expected {_EXAMPLE}")
    if len(images) > max_images:
        raise TooManyImagesError(f"{len(images)} images; at most {max_images} at once")
    return PredictRequest([_decode(i, value) for i, value in enumerate(images)], by_row)


def _decode(number: int, value: Any) -> bytes:
    """Return the bytes of one image, given as `{"b64": ...}` or `{"image_bytes": {"b64": ...}}`."""
    if isinstance(value, dict) and INPUT in value:
        value = value[INPUT]
    text = value.get("b64") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise RequestFormatError(f"image {number} is not given as {{'b64': '...'}}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestFormatError(f"image {number} is not valid base64 ({error})") from error
