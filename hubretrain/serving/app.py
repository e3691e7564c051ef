"""The routes of the server, on FastAPI."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import html
import os
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException

from hubretrain.data.images import TooManyPixelsError, decode, to_unit, view
from hubretrain.errors import DataError, HubretrainError
from hubretrain.export import Export, Runtime
from hubretrain.serving.batch_queue import BatchQueue, FullError, Pixels, Probabilities
from hubretrain.serving.body_limits import App, BodyLimits
from hubretrain.serving.limits import ServeLimits
from hubretrain.serving.prometheus import Metrics
from hubretrain.serving.tf_serving import (
    INPUT,
    RequestFormatError,
    TooManyImagesError,
    read_request,
)

MAX_BATCH_SIZE = 16  # views
_MOST_CLASSES = 30  # that the page names


def make_app(export: Export, runtime: Runtime, name: str, limits: ServeLimits) -> App:
    """Make the ASGI application.

    Args:
        export: The export to serve.
        runtime: Its model, opened.
        name: Name of the model in the URLs.
        limits: Request limits of the server.
    """
    metrics = Metrics()
    batch_size = max(1, MAX_BATCH_SIZE // export.n_views)
    queue = BatchQueue(runtime, limits.max_images, batch_size, metrics)
    predictor = _Predictor(export, queue, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await queue.close()
        predictor.close()

    # FastAPI's own documentation pages load scripts from elsewhere.
    app = FastAPI(title=f"hubretrain: {name}", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HubretrainError, _failure)
    app.include_router(_page_routes(name, export))
    app.include_router(_monitoring_routes(metrics))
    app.include_router(_upload_routes(export, predictor, metrics))
    app.include_router(_model_routes(export, name))
    app.include_router(_tf_serving_routes(export, name, predictor, limits, metrics))
    return BodyLimits(app, limits, metrics)


def _page_routes(name: str, export: Export) -> APIRouter:
    router = APIRouter()
    page, policy = _page(name, _about(export))

    @router.get("/", response_class=HTMLResponse)
    async def drop_an_image() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy})

    return router


def _monitoring_routes(metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/metrics")
    async def metrics_text() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return router


def _upload_routes(export: Export, predictor: _Predictor, metrics: Metrics) -> APIRouter:
    router = APIRouter()
    class_names = export.class_names

    @router.post("/predict")
    async def upload(request: Request, top: int = 3) -> dict[str, Any]:
        images = [await _uploaded(request)]
        probs = await predictor.probabilities(images, _client(request))
        metrics.images.inc()
        ranked = np.argsort(-probs[0], kind="stable")
        order = ranked[: len(ranked) if export.multi_label else max(top, 1)]
        classes = [(class_names[c], float(probs[0, c])) for c in order]
        answer: dict[str, Any] = {
            "classes": dict(classes),  # JavaScript moves names such as "7" to the front
            "top": [{"class": name, "probability": probability} for name, probability in classes],
        }
        (decision,) = export.decisions(probs)
        if not export.multi_label:
            return {"decision": class_names[int(decision)], **answer}
        thresholds = export.manifest["thresholds"]
        for row, c in zip(answer["top"], order, strict=True):
            row |= {"threshold": thresholds[c], "decided": bool(decision[c])}
        return {"labels": [class_names[c] for c in ranked if decision[c]], **answer}

    return router


def _model_routes(export: Export, name: str) -> APIRouter:
    """Return TensorFlow Serving's routes about the model."""
    router = APIRouter()
    shape = [-1, len(export.class_names)]
    signature = {
        "inputs": {INPUT: {"dtype": "DT_STRING", "shape": [-1]}},
        "outputs": {
            "probabilities": {"dtype": "DT_FLOAT", "shape": shape},
            "class_names": {"dtype": "DT_STRING", "shape": shape},
        },
    }
    keys = ["module", "head", "fine_tuned", "temperature", "adjust", "tta", "class_names"]
    if export.multi_label:
        keys[4:5] = ["multi_label", "thresholds"]

    @router.get("/v1/models/{model}")
    @router.get("/v1/models/{model}/versions/1")
    async def state(model: str) -> dict[str, Any]:
        _check_name(model, name)
        status = {"error_code": "OK", "error_message": ""}
        return {"model_version_status": [{"version": "1", "state": "AVAILABLE", "status": status}]}

    @router.get("/v1/models/{model}/metadata")
    @router.get("/v1/models/{model}/versions/1/metadata")
    async def metadata(model: str) -> dict[str, Any]:
        _check_name(model, name)
        return {
            "model_spec": {"name": name, "signature_name": "", "version": "1"},
            "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
            "export": {key: export.manifest.get(key) for key in keys},
        }

    return router


def _tf_serving_routes(
    export: Export, name: str, predictor: _Predictor, limits: ServeLimits, metrics: Metrics
) -> APIRouter:
    """Return TensorFlow Serving's routes of prediction."""
    router = APIRouter()

    @router.post("/v1/models/{model}:predict")
    @router.post("/v1/models/{model}/versions/1:predict")
    async def predict(model: str, request: Request) -> dict[str, Any]:
        _check_name(model, name)
        body = await request.body()
        try:
            predict_request = await asyncio.to_thread(read_request, body, limits.max_images)
        except RequestFormatError as error:
            status = 413 if isinstance(error, TooManyImagesError) else 400
            raise HTTPException(status, str(error)) from error
        probs = await predictor.probabilities(predict_request.images, _client(request), number=True)
        metrics.images.inc(len(probs))
        return predict_request.answer(probs, export.class_names)

    return router


class _Predictor:
    """Bytes of encoded images become probabilities."""

    def __init__(self, export: Export, queue: BatchQueue, limits: ServeLimits) -> None:
        self._sizes, self._queue, self._limits = export.sizes, queue, limits
        self._reading = replace(export.reading, max_pixels=limits.max_pixels)
        self._n_threads = os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(self._n_threads, thread_name_prefix="decode")
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def probabilities(
        self, images: list[bytes], client: str, *, number: bool = False
    ) -> Probabilities:
        """Return the probabilities (n_images, n_classes) of encoded images.

        Args:
            images: The bytes of each encoded image.
            client: Address of who asks. A client has as many images before the threads that
                decode as there are threads, so that those of another are soon next.
            number: Whether an error names the image by its number.

        Raises:
            HTTPException: 400 no image, 413 too many pixels, 503 the queue is full, 504 timeout.
        """
        tasks: list[asyncio.Task[Any]] = []
        try:
            with self._queue.reserve(len(images), client):
                turns = self._turns.setdefault(client, asyncio.Semaphore(self._n_threads))
                for i, data in enumerate(images):
                    prefix = f"image {i}: " if number else ""
                    tasks.append(asyncio.create_task(self._predict(data, prefix, turns)))
                rows = asyncio.gather(*tasks)
                return np.stack(await asyncio.wait_for(rows, self._limits.timeout_seconds))
        except FullError:
            sentence = "the queue is full; try again in a moment"
            raise HTTPException(503, sentence, {"retry-after": "1"}) from None
        except TimeoutError:
            sentence = f"no answer within {self._limits.timeout_seconds:g} s"
            raise HTTPException(504, sentence) from None
        except DataError as error:
            status = 413 if isinstance(error, TooManyPixelsError) else 400
            raise HTTPException(status, str(error)) from None
        finally:
            for task in tasks:
                task.cancel()

    async def _predict(self, data: bytes, prefix: str, turns: asyncio.Semaphore) -> Probabilities:
        loop = asyncio.get_running_loop()
        try:
            async with turns:
                pixels = await loop.run_in_executor(self._threads, self._decode, data)
        except DataError as error:
            raise type(error)(f"{prefix}{error}") from None
        return await self._queue.probabilities(pixels)

    def _decode(self, data: bytes) -> Pixels:
        image = decode(data, self._reading)
        return {size: to_unit(view(image, size)[np.newaxis]) for size in self._sizes}

    def close(self) -> None:
        """Stop decoding."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


async def _uploaded(request: Request) -> bytes:
    """Return the image of an upload: `file` or `image` of a form, or else the body itself."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "multipart/form-data":
        return await request.body()
    async with request.form(max_files=1, max_fields=8) as form:
        file = form.get("file") or form.get("image")
        if not isinstance(file, UploadFile):
            raise HTTPException(
                400, "the form has no file; expected an image in the field `file` or `image`"
            )
        return await file.read()


def _check_name(model: str, name: str) -> None:
    if model != name:
        raise HTTPException(404, f"there is no model {model!r}; this server has {name!r}")


async def _http_error(_request: Request, error: Exception) -> Response:
    """Answer errors as TensorFlow Serving does."""
    assert isinstance(error, StarletteHTTPException)
    content = {"error": str(error.detail)}
    return JSONResponse(content, error.status_code, headers=error.headers)


async def _invalid_request(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    reasons = "; ".join(f"{reason['loc'][-1]}: {reason['msg']}" for reason in error.errors())
    return JSONResponse({"error": reasons}, 400)


async def _failure(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 500)


def _about(export: Export) -> str:
    """Return which model it is and what it tells apart, a sentence each."""
    module, kind = export.manifest["module"], "with a fitted head"
    if export.manifest.get("fine_tuned"):
        tuned = export.manifest.get("fine_tuned_module", module)
        kind = "fine-tuned" if tuned == module else f"with {tuned}, fine-tuned"
    names = export.class_names
    shown = ", ".join(names[:_MOST_CLASSES]) + (", ..." if len(names) > _MOST_CLASSES else "")
    word = "labels, of which an image may have several" if export.multi_label else "classes"
    return f"{module}, {kind}. {len(names)} {word}: {shown}."


def _page(name: str, about: str) -> tuple[str, str]:
    """Return the page, and the policy that lets its own style and script run and nothing else."""
    path = resources.files("hubretrain.serving") / "templates" / "drop.html"
    template = path.read_text(encoding="utf-8")
    hashes = {}
    for tag in ("style", "script"):
        element = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        assert element is not None
        digest = hashlib.sha256(element[1].encode()).digest()
        hashes[tag] = base64.b64encode(digest).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; "
        f"script-src 'sha256-{hashes['script']}'; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page = template.replace("{{ name }}", html.escape(name, quote=False))
    return page.replace("{{ about }}", html.escape(about, quote=False)), policy
