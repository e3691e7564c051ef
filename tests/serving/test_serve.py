"""The server as its clients see it: a process of its own, asked over HTTP."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_sample_images

from hubretrain.cli import main
from hubretrain.data.images.decoding import MOST_PIXELS, decode, to_unit, view
from hubretrain.export.manifest import Export
from hubretrain.export.runtimes import open_runtime
from tests.samples import PATIENCE, REPOSITORY, encoded

pytest.importorskip("fastapi")
PHOTOS = load_sample_images().images
LIMITS = ("--max-bytes", "300000", "--max-pixels", "1000000", "--queue", "6")


def picture(i, form="PNG"):
    photo = PHOTOS[i % 2][7 * i % 300 : 7 * i % 300 + 40 + i, 11 * i % 400 : 11 * i % 400 + 60]
    return encoded(photo, form)


class Server:
    """A running server."""

    def __init__(self, process, port):
        self.process, self.port = process, port

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and parsed answer of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, response.headers, json.loads(data) if is_json else data.decode()

    def predict(self, *images, name="small"):
        rows = [{"b64": base64.b64encode(data).decode()} for data in images]
        return self.ask("POST", f"/v1/models/{name}:predict", json.dumps({"instances": rows}))


@contextmanager
def serving(export, *options):
    command = [sys.executable, "-m", "hubretrain", "serve", str(export), "--port", "0"]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"Serving small with LiteRT at http://127\.0\.0\.1:(\d+)$", line)
        assert found, line + process.stderr.read()
        yield Server(process, int(found[1]))
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(small_export):
    with serving(small_export, *LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def truth(small_export):
    exported = Export.open(small_export)
    runner = open_runtime(exported, "savedmodel")

    def of(data):
        return runner({8: to_unit(view(decode(data), 8)[np.newaxis])})[0]

    return of


def test_tensorflow_servings_form_by_row_and_by_column(server, truth):
    images = [picture(0), picture(1, "JPEG"), picture(2, "TIFF")]
    status, _, said = server.predict(*images)
    assert status == 200
    assert said["predictions"][0]["class_names"] == ["a", "<b>", "ç é"]
    rows = [one["probabilities"] for one in said["predictions"]]
    assert np.abs(np.array(rows) - [truth(data) for data in images]).max() < 1e-4
    assert server.predict(*images, name="small/versions/1")[2] == said
    columns = {"image_bytes": [{"b64": base64.b64encode(data).decode()} for data in images]}
    path = "/v1/models/small:predict"
    status, _, said = server.ask("POST", path, json.dumps({"inputs": columns}))
    assert status == 200
    assert np.allclose(said["outputs"]["probabilities"], rows)


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


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_gigabyte_is_refused_and_not_read(server, is_chunked):
    before = psutil.Process(server.process.pid).memory_info().rss
    block, n_sent = b"\0" * 65536, 0
    length = "Transfer-Encoding: chunked" if is_chunked else "Content-Length: 1000000000"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
        part = b"%x\r\n" % len(block) + block + b"\r\n" if is_chunked else block
        client.settimeout(0.2)
        answer = b""
        for _ in range(50):
            try:
                client.sendall(part)
                n_sent += len(block)
            except OSError:
                break
        client.settimeout(PATIENCE)
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert n_sent < 1e9
    assert psutil.Process(server.process.pid).memory_info().rss - before < 50e6
    assert server.ask("GET", "/healthz")[0] == 200


def test_slow_clients_are_let_go(small_export):
    with serving(small_export, "--timeout", "1") as server:
        places = [("127.0.0.1", server.port)] * 3
        clients = [socket.create_connection(place, timeout=PATIENCE) for place in places]
        slow_body, slow_head, silent = clients
        slow_body.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        slow_head.sendall(b"POST /predict HT")
        assert slow_body.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert slow_head.recv(4096) == b""
        assert silent.recv(4096) == b""
        for client in clients:
            client.close()
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        for _ in range(2):  # a connection that is kept serves more than one request
            kept.request("GET", "/healthz")
            assert kept.getresponse().read() == b'{"status":"ok"}'
        kept.sock.sendall(b"POST /pre")
        assert kept.sock.recv(4096) == b""
        kept.close()


def test_more_than_there_is_room_for_come_again_and_nothing_is_lost(server, truth):
    images = [picture(i) for i in range(24)]
    expected = [truth(data) for data in images]
    place = ("127.0.0.1", server.port)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    holding = [socket.create_connection(place, timeout=PATIENCE) for _ in range(6)]
    for client in holding:
        client.sendall(head + b"abc")
    while (refused := server.predict(images[0]))[0] == 200:
        pass  # not all of the six are in yet
    status, headers, answer = refused
    assert status == 503
    assert headers["retry-after"] == "1"
    assert "again in a moment" in answer["error"]
    for client in holding:
        client.close()

    def ask(i):
        while (answered := server.predict(images[i]))[0] == 503:
            time.sleep(0.02)
        return answered[2]["predictions"][0]["probabilities"]

    with ThreadPoolExecutor(24) as pool:
        probs = list(pool.map(ask, range(24)))
    assert np.abs(np.array(probs) - expected).max() < 1e-4
    assert "hubretrain_images_inside 0.0" in server.ask("GET", "/metrics")[2]


def test_a_client_that_leaves_keeps_nobody_waiting(server):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            data = picture(1)
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
            client.sendall(head.encode() + data)
    while "hubretrain_images_inside 0.0" not in server.ask("GET", "/metrics")[2]:
        time.sleep(0.05)
    assert server.ask("POST", "/predict", picture(0))[0] == 200


def metric(server, name, labels):
    text = server.ask("GET", "/metrics")[2]
    found = re.search(rf"^{name}{{{labels}}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_client_that_breaks_off_is_no_failure_of_the_server(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    while not metric(server, "hubretrain_requests_total", 'route="/predict",status="499"'):
        time.sleep(0.05)
    assert not metric(server, "hubretrain_requests_total", 'route="/predict",status="500"')


def test_the_bytes_of_all_bodies_have_a_bound_and_idle_connections_take_no_room(small_export):
    with serving(small_export, "--max-bytes", "100000", "--queue", "20") as server:
        place = ("127.0.0.1", server.port)
        idle = [socket.create_connection(place, timeout=PATIENCE) for _ in range(200)]
        assert server.ask("GET", "/healthz")[0] == 200
        clients = [socket.create_connection(place, timeout=PATIENCE) for _ in range(9)]
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        for client in clients:
            client.sendall(head + b"x" * 99_990)
        (refused,), _, _ = select.select(clients, [], [], PATIENCE)  # whichever came last
        assert refused.recv(4096).startswith(b"HTTP/1.1 503 ")
        for client in clients:
            if client is not refused:
                client.sendall(b"x" * 10)
                assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
        assert server.ask("POST", "/predict", picture(0))[0] == 200
        for client in idle + clients:
            client.close()


@pytest.mark.parametrize(
    ("option", "value", "code", "sentence"),
    [
        ("--timeout", "inf", 2, "inf is not in the range 0.1<=x<=3600"),
        ("--timeout", "nan", 2, "nan is no number of seconds"),
        ("--max-pixels", str(MOST_PIXELS + 1), 2, f"not in the range 1<=x<={MOST_PIXELS}"),
        ("--host", "a..b", 1, "cannot listen on a..b:8501 ("),
    ],
)
def test_an_option_out_of_bounds_is_one_sentence(small_export, option, value, code, sentence):
    ran = CliRunner().invoke(main, ["serve", str(small_export), option, value])
    assert ran.exit_code == code
    assert sentence in ran.stderr
    assert "Traceback" not in ran.output


def test_interrupting_it_is_how_it_ends(small_export):
    with serving(small_export) as running:
        running.ask("GET", "/healthz")  # it listens before it serves
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=PATIENCE) == 0
        assert running.process.stderr.read() == ""


def test_it_stops_when_told_and_a_taken_port_is_one_sentence(small_export):
    with serving(small_export) as running:
        command = [sys.executable, "-m", "hubretrain", "serve", str(small_export)]
        taken = subprocess.run(
            [*command, "--port", str(running.port)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert taken.returncode == 1
        assert taken.stderr == (
            f"hubretrain: cannot listen on 127.0.0.1:{running.port} (Address already in use); "
            "choose another --port or --host.\n"
        )
        assert running.ask("POST", "/predict", picture(0))[0] == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=PATIENCE) in (0, -signal.SIGTERM)
        assert running.process.stderr.read() == ""
