"""The routes and what they answer."""

from __future__ import annotations

import asyncio
import io
import os
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hubretrain.data.images import Reading
from hubretrain.export.manifest import Export
from hubretrain.serving.batch_queue import BatchQueue
from hubretrain.serving.limits import ServeLimits
from hubretrain.serving.prometheus import Metrics
from tests.samples import PATIENCE
from tests.serving.samples import PHOTOS, picture

pytest.importorskip("fastapi")


def test_an_upload_and_a_plain_body_say_the_same(server, truth, small_export):
    data = picture(3)
    head = '--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    form = head.encode() + data + b"\r\n--x--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=x"}
    status, _, said = server.ask("POST", "/predict", form, kind)
    assert status == 200
    names = Export.open(small_export).class_names
    assert [said["classes"][name] for name in names] == pytest.approx(truth(data), abs=1e-4)
    assert list(said["classes"].values()) == sorted(said["classes"].values(), reverse=True)
    assert [(one["class"], one["probability"]) for one in said["top"]] == [*said["classes"].items()]
    decision = Export.open(small_export).decisions(truth(data)[np.newaxis])[0]
    assert said["decision"] == names[int(decision)]
    assert server.ask("POST", "/predict?top=3", data)[2] == said
    assert len(server.ask("POST", "/predict?top=1", data)[2]["classes"]) == 1


def test_state_health_and_metrics(server):
    assert server.ask("GET", "/healthz")[2] == {"status": "ok"}
    for version in ("", "/versions/1"):
        state = server.ask("GET", f"/v1/models/small{version}")[2]["model_version_status"][0]
        assert (state["state"], state["version"]) == ("AVAILABLE", "1")
        assert server.ask("GET", f"/v1/models/small{version}/metadata")[0] == 200
    assert server.ask("GET", "/v1/models/small/versions/2")[0] == 404
    told = server.ask("GET", "/v1/models/small/metadata")[2]["metadata"]["signature_def"]
    assert told["signature_def"]["serving_default"]["inputs"]["image_bytes"]["dtype"] == "DT_STRING"

    def counted():
        text = server.ask("GET", "/metrics")[2]
        found = re.search(r'hubretrain_requests_total\{route="/predict",status="200"\} (\S+)', text)
        assert "process_resident_memory_bytes" in text
        return float(found[1]) if found else 0.0

    before = counted()
    server.ask("POST", "/predict", picture(0))
    assert counted() == before + 1


def bomb():
    buffer = io.BytesIO()
    Image.new("1", (12000, 9000)).save(buffer, "PNG")
    return buffer.getvalue()


def postscript():
    """An image whose decoder would run Ghostscript on what a stranger sent."""
    buffer = io.BytesIO()
    Image.fromarray(PHOTOS[0][:20, :20]).save(buffer, "EPS")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/predict", b"nothing", 400, "no image of a known type"),
        ("/predict", b"", 400, "an empty file"),
        ("/predict", postscript(), 400, "no image of a known type"),
        ("/predict", picture(0)[:-300], 400, "a damaged image"),
        ("/predict", bomb(), 413, "12000 x 9000 pixels; at most 1000000 are read"),
        ("/predict", b"x" * 300_001, 413, "the body is too large; at most 300,000 bytes"),
        ("/predict?top=some", b"x", 400, "top: Input should be a valid integer"),
        ("/v1/models/small:predict", b"{garbage", 400, "the body is not valid JSON"),
        ("/v1/models/small:predict", b"[" * 100_000, 413, "more values than 6 images have"),
        (
            "/v1/models/small:predict",
            b'{"instances": [' + b"{}," * 90_000 + b"{}]}",
            413,
            "more values than 6 images have",
        ),
        (
            "/v1/models/small:predict",
            b'{"instances": [' + b'{"b64": "*"},' * 6 + b'{"b64": "*"}]}',
            413,
            "7 images; at most 6 at once",
        ),
        ("/v1/models/small:predict", b"\xff\xfe\x00", 400, "the body is not valid JSON"),
        ("/v1/models/small:predict", b"[1]", 400, "expected either instances or inputs"),
        ("/v1/models/small:predict", b'{"instances": []}', 400, "there are no images"),
        ("/v1/models/small:predict", b'{"instances": [7]}', 400, "image 0 is not given as"),
        (
            "/v1/models/small:predict",
            b'{"instances": [{"b64": "*"}]}',
            400,
            "image 0 is not valid",
        ),
        (
            "/v1/models/small:predict",
            b'{"signature_name": "x", "inputs": 1}',
            400,
            "signature_name",
        ),
        (
            "/v1/models/other:predict",
            b"{}",
            404,
            "there is no model 'other'; this server",
        ),
        ("/nowhere", b"{}", 404, "Not Found"),
        ("/healthz", b"{}", 405, "Method Not Allowed"),
    ],
)
def test_a_bad_request_gets_its_status_and_a_sentence(server, path, body, status, sentence):
    got, _, said = server.ask("POST", path, body)
    assert got == status
    assert sentence in said["error"]
    assert "Traceback" not in said["error"]


def test_a_bad_image_among_good_ones_is_named(server):
    status, _, said = server.predict(picture(0), b"nothing")
    assert (status, said["error"]) == (400, "image 1: no image of a known type")
    status, _, said = server.predict(*[picture(0)] * 7)
    assert (status, said["error"]) == (413, "7 images; at most 6 at once")


def test_a_form_without_a_file_is_refused(server):
    kind = {"content-type": "multipart/form-data; boundary=x"}
    body = b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\n1\r\n--x--\r\n'
    status, _, said = server.ask("POST", "/predict", body, kind)
    assert status == 400
    assert "the form has no file" in said["error"]
    assert server.ask("POST", "/predict", b"--y", kind)[0] == 400


def test_the_images_of_one_client_do_not_all_come_before_those_of_another():
    """Each client has as many images before the threads as there are threads."""
    from hubretrain.serving.app import _Predictor

    started, blocked = [], threading.Event()

    class Slow(_Predictor):
        def _decode(self, data):
            started.append(data)
            blocked.wait(PATIENCE)
            return {}

    async def ask():
        queue = BatchQueue(lambda _: np.zeros((1, 2)), 1000, 1, Metrics())
        predictor = Slow(
            SimpleNamespace(sizes=(8,), reading=Reading()),
            queue,
            ServeLimits(timeout_seconds=PATIENCE),
        )
        n = os.cpu_count() or 1
        asking = [asyncio.ensure_future(predictor.probabilities([b"greedy"] * 50 * n, "a"))]
        await asyncio.sleep(0.05)
        asking.append(asyncio.ensure_future(predictor.probabilities([b"honest"], "b")))
        await asyncio.sleep(0.05)
        blocked.set()
        await asyncio.gather(*asking)
        await queue.close()
        predictor.close()
        return n

    n_threads = asyncio.run(ask())
    assert b"honest" in started[: 2 * n_threads + 1]
