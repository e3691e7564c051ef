"""The server under load: requests per second, latency, lost requests, memory.

    python benchmarks/bench_serve.py EXPORT IMAGES [--clients 1 8 64] [--seconds 15]
    python benchmarks/bench_serve.py EXPORT IMAGES --memory 10000

The server is a process of its own on 127.0.0.1; its clients are threads of this process, each with
a persistent connection. Baseline: the bare interpreter on pixels in memory, in turns. A response
counts only if it is the prediction for the image that was sent.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

from hubretrain.data.images.decoding import decode, to_unit, view
from hubretrain.export.manifest import Export
from hubretrain.export.predict import image_files, predict_images


class Load:
    """Clients that send one image after the other."""

    def __init__(self, port: int, images: list[bytes], expected: list[dict[str, float]]) -> None:
        self.port, self.images, self.expected = port, images, expected
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run(self, n_clients: int, seconds: float, max_requests: int = 10**9) -> float:
        """Send requests for some seconds, or a number of them; return the seconds that it took."""
        self.seconds, self.statuses, self._left = [], Counter(), max_requests
        started = time.perf_counter()
        threads = [
            threading.Thread(target=self._client, args=(i, started + seconds))
            for i in range(n_clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    def _client(self, number: int, until: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while time.perf_counter() < until:
            with self._lock:
                if self._left == 0:
                    break
                self._left -= 1
                number = (number + 1) % len(self.images)
            started = time.perf_counter()
            try:
                connection.request("POST", "/predict", self.images[number])
                response = connection.getresponse()
                data, status = json.loads(response.read()), str(response.status)
                if status == "200":
                    gap = max(abs(self.expected[number][k] - p) for k, p in data["classes"].items())
                    status = "200" if gap < 1e-4 else "another image's prediction"
            except (OSError, http.client.HTTPException) as error:
                status = type(error).__name__
                connection.close()
            with self._lock:
                self.seconds.append(time.perf_counter() - started)
                self.statuses[status] += 1
        connection.close()


def bare(exported: Export, images: list[bytes], seconds: float) -> float:
    """Return the images per second of the interpreter alone."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(exported.model("litert")), num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner("pixels")
    size = exported.sizes[0]
    pixels = [to_unit(view(decode(data), size)[np.newaxis]) for data in images]
    runner(pixels=pixels[0])
    n, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        runner(pixels=pixels[n % len(pixels)])
        n += 1
    return n / (time.perf_counter() - started)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--memory", type=int, metavar="REQUESTS")
    options = parser.parse_args()
    exported = Export.open(options.export)
    files = list(image_files([options.images]))[::31][:64]
    images = [Path(path).read_bytes() for path in files]
    expected = [dict(prediction.classes) for prediction in predict_images(options.export, files)]
    command = [sys.executable, "-m", "hubretrain", "serve", str(options.export), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            match = re.search(r":(\d+)$", server.stdout.readline())
            assert match is not None
            load = Load(int(match[1]), images, expected)
            load.run(2, 3)
            if options.memory:
                memory(load, server.pid, options.memory)
            else:
                latencies(load, exported, images, options.clients, options.seconds)
        finally:
            server.terminate()


def latencies(
    load: Load, exported: Export, images: list[bytes], clients: list[int], seconds: float
) -> None:
    print(
        "| clients | requests | requests/s | of the bare interpreter | p50 ms | p99 ms | result |"
    )
    print("|---|---|---|---|---|---|---|")
    for n_clients in clients:
        before = bare(exported, images, seconds / 3)
        elapsed = load.run(n_clients, seconds)
        base = (before + bare(exported, images, seconds / 3)) / 2
        rate = len(load.seconds) / elapsed
        p50, p99 = (1000 * np.percentile(load.seconds, q) for q in (50, 99))
        statuses = ", ".join(f"{n:,} x {status}" for status, n in load.statuses.items())
        row = (n_clients, f"{len(load.seconds):,}", f"{rate:.1f}", f"{rate / base:.2f}")
        print(
            "|",
            " | ".join(map(str, (*row, f"{p50:.0f}", f"{p99:.0f}", statuses))),
            "|",
            flush=True,
        )


def memory(load: Load, pid: int, n_requests: int) -> None:
    process = psutil.Process(pid)
    print("| requests so far | resident memory, MB |\n|---|---|")
    done = 0
    for part in (n_requests // 20, *[n_requests // 5] * 4, n_requests // 5 - n_requests // 20):
        load.run(8, 3600, part)
        done += part
        assert set(load.statuses) == {"200"}, load.statuses
        print(f"| {done:,} | {process.memory_info().rss / 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    main()
