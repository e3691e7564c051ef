"""A running server as its clients see it: a process of its own, asked over HTTP."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

from sklearn.datasets import load_sample_images

from tests.samples import PATIENCE, REPOSITORY, encoded

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


def metric(server, name, labels):
    text = server.ask("GET", "/metrics")[2]
    found = re.search(rf"^{name}{{{labels}}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@contextmanager
def done_with(server, n_requests, route="/predict"):
    """Wait at the end until the server has done with so many requests that began inside.

    An answer says that of its own request only, and a client that leaves gets none.
    """

    def n_done():
        text = server.ask("GET", "/metrics")[2]
        pattern = rf'^hubretrain_requests_total{{route="{route}",status="\d+"}} (\S+)$'
        return sum(map(float, re.findall(pattern, text, re.MULTILINE)))

    n_before = n_done()
    yield
    while n_done() < n_before + n_requests:
        time.sleep(0.05)
