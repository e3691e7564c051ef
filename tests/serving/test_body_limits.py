from __future__ import annotations

import asyncio
import time

import pytest

pytest.importorskip("fastapi")
from hubretrain.serving.body_limits import BodyLimits
from hubretrain.serving.limits import ServeLimits
from hubretrain.serving.prometheus import Metrics


def test_the_time_of_an_answer_is_not_that_of_draining(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    metrics, sent, n_left = Metrics(), [], [4]

    async def receive():
        seconds[0] += 100
        n_left[0] -= 1
        return {"type": "http.request", "body": b"too many", "more_body": n_left[0] > 0}

    async def send(message):
        sent.append(message)

    server = BodyLimits(None, ServeLimits(max_bytes=3), metrics)
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    asyncio.run(server(scope, receive, send))
    assert sent[0]["status"] == 413
    assert seconds[0] == 400  # it read on
    lines = metrics.text().decode().splitlines()
    assert 'hubretrain_request_seconds_sum{route="/predict"} 100.0' in lines
