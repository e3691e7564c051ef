from __future__ import annotations

import http.client
import socket

import pytest

from tests.samples import PATIENCE
from tests.serving.samples import serving

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
