from __future__ import annotations

import asyncio
import select
import socket
import time

import psutil
import pytest

from hubretrain.serving.body_limits import BodyLimits
from hubretrain.serving.limits import ServeLimits
from hubretrain.serving.prometheus import Metrics
from tests.samples import PATIENCE
from tests.serving.samples import done_with, metric, picture, serving

pytest.importorskip("fastapi")


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


def test_a_client_that_breaks_off_is_no_failure_of_the_server(server):
    left = "hubretrain_requests_total", 'route="/predict",status="499"'
    n_left = metric(server, *left)
    with (
        done_with(server, 1),
        socket.create_connection(("127.0.0.1", server.port)) as client,
    ):
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    assert metric(server, *left) == n_left + 1
    assert not metric(server, "hubretrain_requests_total", 'route="/predict",status="500"')


def test_a_client_that_leaves_makes_room_before_its_answer_is_computed():
    metrics, answered = Metrics(), []

    async def endless(scope, receive, send):
        await receive()
        await asyncio.Event().wait()

    async def one_after_the_other():
        server = BodyLimits(endless, ServeLimits(max_images=1), metrics)
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
        for _ in range(3):
            messages = iter(({"type": "http.request", "body": b"x"}, {"type": "http.disconnect"}))

            async def receive(messages=messages):
                return next(messages)

            async def send(message):
                answered.append(message)

            await asyncio.wait_for(server(scope, receive, send), PATIENCE)

    asyncio.run(one_after_the_other())
    assert not answered
    lines = metrics.text().decode().splitlines()
    assert 'hubretrain_requests_total{route="/predict",status="499"} 3.0' in lines


def test_a_server_that_ends_while_it_computes_is_not_held_up():
    async def endless(scope, receive, send):
        await receive()
        await asyncio.Event().wait()

    async def ended():
        is_read = asyncio.Event()

        async def receive():
            if is_read.is_set():
                await asyncio.Event().wait()  # the client stays
            is_read.set()
            return {"type": "http.request", "body": b"x"}

        server = BodyLimits(endless, ServeLimits(), Metrics())
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
        request = asyncio.ensure_future(server(scope, receive, None))
        await is_read.wait()
        for _ in range(10):
            await asyncio.sleep(0)  # now it computes
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(ended())


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


def asgi_clients(server, clients):
    """Send one body per client: an iterable of (address, parts); it ends with an empty part."""

    async def one(address, parts, answers):
        parts = iter(parts)

        async def receive():
            if (part := next(parts, None)) is None:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": part, "more_body": bool(part)}

        async def send(message):
            if message["type"] == "http.response.start":
                answers[address] = message["status"]

        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
        await server({**scope, "client": (address, 1)}, receive, send)

    async def run():
        answers = {}
        tasks = []
        for address, parts in clients:
            tasks.append(asyncio.ensure_future(one(address, parts, answers)))
            for _ in range(5):
                await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return answers

    return asyncio.run(run())


async def answer_200(scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_a_client_of_many_bodies_makes_room_for_another_at_once():
    server = BodyLimits(answer_200, ServeLimits(max_images=4), Metrics())
    slow = [("greedy", [b"x"])] * 4
    answers = asgi_clients(server, [*slow, ("honest", [b"a photograph", b""])])
    assert answers == {"greedy": 503, "honest": 200}


def test_a_client_of_many_bytes_makes_room_for_another_at_once():
    limits = ServeLimits(max_images=99, max_bytes=10)
    server = BodyLimits(answer_200, limits, Metrics())
    slow = [("greedy", [b"x" * 9])] * 8
    answers = asgi_clients(server, [*slow, ("honest", [b"x" * 9, b""])])
    assert answers == {"greedy": 503, "honest": 200}


def test_the_slowest_body_makes_room_also_where_all_come_from_one_address(server):
    """As behind a proxy."""
    place = ("127.0.0.1", server.port)
    slow = [socket.create_connection(place, timeout=PATIENCE) for _ in range(6)]
    for client in slow:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    time.sleep(1.5)  # they have had their time
    for i in range(6):
        assert server.ask("POST", "/predict", picture(i))[0] == 200
    assert sum(bool(select.select([client], [], [], 0)[0]) for client in slow) >= 1
    for client in slow:
        client.close()
