from __future__ import annotations

import contextlib
import http.client
import signal
import socket

import pytest

from tests.samples import PATIENCE
from tests.serving.samples import picture, serving

pytest.importorskip("fastapi")


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


def test_a_shutdown_answers_requests_that_are_on_their_way(small_export):
    data = picture(0)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    request = head + data
    with serving(small_export) as server:
        place = ("127.0.0.1", server.port)
        server.ask("GET", "/healthz")  # it listens before it serves
        n_sent = [0, 5, len(head), len(head) + 9, len(request)]
        clients = [socket.create_connection(place, timeout=PATIENCE) for _ in n_sent]
        for client, n in zip(clients, n_sent, strict=True):
            client.sendall(request[:n])
        server.ask("GET", "/healthz")
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):
            while True:  # until it takes no new connections
                socket.create_connection(place, timeout=PATIENCE).close()
        for client, n in zip(clients, n_sent, strict=True):
            client.sendall(request[n:])
        for client in clients:
            with client, client.makefile("rb") as answer:
                assert answer.read().startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(timeout=PATIENCE) in (0, -signal.SIGTERM)
        assert server.process.stderr.read() == ""
