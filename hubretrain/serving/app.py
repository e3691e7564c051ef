"""The routes of the server, on FastAPI."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as AnyHTTPException

from hubretrain.data.images import TooManyPixelsError, decode, to_unit, view
from hubretrain.errors import DataError, HubretrainError
from hubretrain.export import Export, Runtime
from hubretrain.serving.batch_queue import BatchQueue, FullError, Pixels
from hubretrain.serving.body_limits import App, BodyLimits
from hubretrain.serving.limits import Limits
from hubretrain.serving.prometheus import Metrics
from hubretrain.serving.tf_serving import INPUT, FormError, TooManyImagesError, read_asked

BATCH_SIZE = 16


def make_app(exported: Export, runner: Runtime, name: str, limits: Limits) -> App:
    """The application.

    Args:
        exported: What is served.
        runner: The model, opened.
        name: Of the model, in its address.
        limits: What the server takes.
    """
    counts = Metrics()
    batches = BatchQueue(runner, limits.n_images, BATCH_SIZE, counts)
    images = _Images(exported, batches, limits)

    @contextlib.asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await batches.close()
        images.close()

    # FastAPI's own documentation pages load scripts from elsewhere.
    app = FastAPI(title=f"hubretrain: {name}", docs_url=None, redoc_url=None, lifespan=life)
    app.add_exception_handler(AnyHTTPException, _as_error)
    app.add_exception_handler(RequestValidationError, _as_invalid)
    app.add_exception_handler(HubretrainError, _as_failure)
    class_names = exported.class_names
    page, policy = _page(name)

    @app.get("/", response_class=HTMLResponse)
    async def drop_an_image() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy})

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(counts.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models/{model}")
    @app.get("/v1/models/{model}/versions/1")
    async def state(model: str) -> dict[str, Any]:
        _check(model, name)
        status = {"error_code": "OK", "error_message": ""}
        return {"model_version_status": [{"version": "1", "state": "AVAILABLE", "status": status}]}

    @app.get("/v1/models/{model}/metadata")
    @app.get("/v1/models/{model}/versions/1/metadata")
    async def metadata(model: str) -> dict[str, Any]:
        _check(model, name)
        signature = {
            "inputs": {INPUT: {"dtype": "DT_STRING", "shape": [-1]}},
            "outputs": {
                "probabilities": {"dtype": "DT_FLOAT", "shape": [-1, len(class_names)]},
                "class_names": {"dtype": "DT_STRING", "shape": [-1, len(class_names)]},
            },
        }
        kept = ("module", "head", "fine_tuned", "temperature", "adjust", "class_names")
        return {
            "model_spec": {"name": name, "signature_name": "", "version": "1"},
            "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
            "export": {key: exported.facts.get(key) for key in kept},
        }

    @app.post("/v1/models/{model}:predict")
    @app.post("/v1/models/{model}/versions/1:predict")
    async def serving_form(model: str, request: Request) -> dict[str, Any]:
        _check(model, name)
        body = await request.body()
        try:
            asked = await asyncio.to_thread(read_asked, body, limits.n_images)
        except FormError as error:
            status = 413 if isinstance(error, TooManyImagesError) else 400
            raise HTTPException(status, str(error)) from error
        rows = await images.probabilities(asked.images, number=True)
        counts.images.inc(len(rows))
        return asked.answer(rows, class_names)

    @app.post("/predict")
    async def upload(request: Request, top: int = 3) -> dict[str, Any]:
        data = await _uploaded(request)
        rows = await images.probabilities([data])
        counts.images.inc()
        order = np.argsort(-rows[0], kind="stable")[: max(top, 1)]
        found = [(class_names[c], float(rows[0, c])) for c in order]
        return {
            "decision": class_names[int(exported.decisions(rows)[0])],
            "classes": dict(found),  # JavaScript moves names such as "7" to the front
            "top": [{"class": name, "probability": probability} for name, probability in found],
        }

    return BodyLimits(app, limits, counts)


class _Images:
    """Bytes of images become probabilities."""

    def __init__(self, exported: Export, batches: BatchQueue, limits: Limits) -> None:
        self._sizes, self._batches, self._limits = exported.sizes, batches, limits
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")

    async def probabilities(
        self, contents: list[bytes], *, number: bool = False
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Probabilities (n_images, n_classes) of encoded images.

        Raises:
            HTTPException: 400 no image, 413 too many pixels, 503 no room, 504 too late.
        """
        tasks: list[asyncio.Task[Any]] = []
        try:
            with self._batches.room(len(contents)):
                for i, data in enumerate(contents):
                    before = f"image {i}: " if number else ""
                    tasks.append(asyncio.create_task(self._one(data, before)))
                answers = asyncio.gather(*tasks)
                return np.stack(await asyncio.wait_for(answers, self._limits.seconds))
        except FullError:
            sentence = "the queue is full; ask again in a moment"
            raise HTTPException(503, sentence, {"retry-after": "1"}) from None
        except TimeoutError:
            sentence = f"no answer within {self._limits.seconds:g} s"
            raise HTTPException(504, sentence) from None
        except DataError as error:
            status = 413 if isinstance(error, TooManyPixelsError) else 400
            raise HTTPException(status, str(error)) from None
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, data: bytes, before: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        loop = asyncio.get_running_loop()
        look: Callable[[bytes], Pixels] = self._look
        try:
            pixels = await loop.run_in_executor(self._threads, look, data)
        except DataError as error:
            raise type(error)(f"{before}{error}") from None
        return await self._batches.probabilities(pixels)

    def _look(self, data: bytes) -> Pixels:
        image = decode(data, self._limits.n_pixels)
        return {size: to_unit(view(image, size)[np.newaxis]) for size in self._sizes}

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _uploaded(request: Request) -> bytes:
    """The image of a form's `file`, or the body itself."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        return await request.body()
    async with request.form(max_files=1, max_fields=8) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise HTTPException(400, "the form has no file; expected one named file, an image")
        return await file.read()


def _check(model: str, name: str) -> None:
    if model != name:
        raise HTTPException(404, f"no model is called {model!r} here; there is {name!r}")


async def _as_error(_request: Request, error: Exception) -> Response:
    """Errors as TensorFlow Serving gives them."""
    assert isinstance(error, AnyHTTPException)
    content = {"error": str(error.detail)}
    return JSONResponse(content, error.status_code, headers=error.headers)


async def _as_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
    return JSONResponse({"error": said}, 400)


async def _as_failure(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 500)


def _page(name: str) -> tuple[str, str]:
    """The page, and the policy that lets its own style and script run and nothing else."""
    text = (resources.files("hubretrain.serving") / "templates" / "drop.html").read_text(
        encoding="utf-8"
    )
    hashes = {}
    for tag in ("style", "script"):
        found = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert found is not None
        digest = hashlib.sha256(found[1].encode()).digest()
        hashes[tag] = base64.b64encode(digest).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; "
        f"script-src 'sha256-{hashes['script']}'; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    shown = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("{{ name }}", shown), policy
