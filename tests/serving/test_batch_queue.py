from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hubretrain.serving.batch_queue import BatchQueue, FullError
from hubretrain.serving.prometheus import Metrics
from tests.samples import PATIENCE
from tests.serving.samples import done_with, picture

pytest.importorskip("fastapi")


def test_more_than_there_is_room_for_come_again_and_nothing_is_lost(server, truth):
    images = [picture(i) for i in range(24)]
    expected = [truth(data) for data in images]
    place = ("127.0.0.1", server.port)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    holding = []

    def hold():
        holding.append(socket.create_connection(place, timeout=PATIENCE))
        holding[-1].sendall(head + b"abc")

    for _ in range(6):
        hold()
    while (refused := server.predict(images[0]))[0] == 200:
        hold()  # one of the six may have come while a prediction took its room
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
    with done_with(server, 20):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                data = picture(1)
                head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
                client.sendall(head.encode() + data)
    assert "hubretrain_images_inside 0.0" in server.ask("GET", "/metrics")[2]
    assert server.ask("POST", "/predict", picture(0))[0] == 200


def test_a_client_with_its_share_leaves_room_for_others():
    queue = BatchQueue(None, 16, 4, Metrics())
    with queue.reserve(14, "greedy"):
        with pytest.raises(FullError), queue.reserve(1, "greedy"):
            pass
        with queue.reserve(2, "honest"), pytest.raises(FullError), queue.reserve(1, "another"):
            pass
    with queue.reserve(16, "greedy"):  # a request may fill an idle queue
        pass
    assert queue.n_in_flight == 0
