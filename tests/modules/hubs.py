"""Servers that answer as the real hubs do."""

from __future__ import annotations

import http.server
import io
import json
import tarfile
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


def archived(folder: Path, *more: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False)
        for info in more:
            archive.addfile(info)
    return buffer.getvalue()


class Hub(http.server.BaseHTTPRequestHandler):
    """tfhub.dev: a handle with `?tf-hub-format=compressed` leads to a tar.gz elsewhere."""

    archive = b""
    requests: list[str]

    def do_GET(self):
        url = urlsplit(self.path)
        self.server.requests.append(self.path)
        kind = url.path.split("/")[1]
        archive = self.server.archive
        if kind == "storage":
            self.give(archive)
        elif parse_qs(url.query).get("tf-hub-format") != ["compressed"]:
            self.send_error(404)
        elif kind == "forbidden":
            self.send_error(403)
        elif kind == "truncated":
            self.give(archive[: len(archive) // 2])
        elif kind == "outside":
            self.give(self.server.outside)
        elif kind == "slow":
            self.server.stop.wait(20)
        else:
            self.send_response(302)
            self.send_header("Location", "/storage/module.tar.gz")
            self.end_headers()

    def give(self, data):
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Kaggle(Hub):
    """What kagglehub asks for: the list of a model's files, and each of them."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(f"{self.path} {json.dumps(body, sort_keys=True)}")
        folder = self.server.folder
        if body["instanceSlug"] == "gone":
            self.send_error(404)
        elif self.path.endswith("/ListModelInstanceVersionFiles"):
            files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
            names = [{"name": p.relative_to(folder).as_posix()} for p in files]
            self.give(json.dumps({"files": names, "nextPageToken": ""}).encode())
        elif self.path.endswith("/DownloadModelInstanceVersion"):
            self.give((folder / body["path"]).read_bytes())
        else:
            self.send_error(404)


def serve(handler, port=0, **facts):
    server = http.server.ThreadingHTTPServer(("localhost", port), handler)
    server.requests, server.stop = [], threading.Event()
    vars(server).update(facts)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
