"""Near-duplicate search on planted copies of real images: recall per kind, precision, seconds.

    python benchmarks/bench_duplicates.py DATA [--copies 100] [--seed 0] [--sheet PAIRS.png]

DATA is a folder of images, at any depth. If it holds HAM10000_metadata.csv, its lesions tell
whether pairs that were not planted are photographs of one lesion.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageEnhance

from hubretrain.data.near_duplicates.search import find_duplicates

SUFFIXES = {".jpg", ".jpeg", ".png"}


def encoded(image: Image.Image, format: str = "JPEG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def resized(image: Image.Image, factor: float) -> bytes:
    size = (round(image.width * factor), round(image.height * factor))
    return encoded(image.resize(size, Image.Resampling.LANCZOS), quality=90)


def cropped(image: Image.Image, sides: list[float]) -> bytes:
    left, top, right, bottom = sides
    box = (left * image.width, top * image.height)
    box += ((1 - right) * image.width, (1 - bottom) * image.height)
    return encoded(image.crop(tuple(round(edge) for edge in box)), quality=90)


def brightened(image: Image.Image, factor: float) -> bytes:
    return encoded(ImageEnhance.Brightness(image).enhance(factor), quality=90)


Copy = Callable[[Image.Image, np.random.Generator], bytes]
KINDS: dict[str, Copy] = {
    "JPEG quality 60": lambda image, _: encoded(image, quality=60),
    "half the size": lambda image, _: resized(image, 0.5),
    "1.5 times the size": lambda image, _: resized(image, 1.5),
    "5 % cropped at each side": lambda image, _: cropped(image, [0.05] * 4),
    "mirrored": lambda image, _: encoded(
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=90
    ),
    "20 % brighter or darker": lambda image, random: brightened(image, random.choice([0.8, 1.2])),
    "turned by 90 degrees, PNG": lambda image, _: encoded(
        image.transpose(Image.Transpose.ROTATE_90), "PNG"
    ),
    # Beyond the goal.
    "0-8 % cropped, uneven": lambda image, random: cropped(image, list(random.uniform(0, 0.08, 4))),
    "half the size, quality 60": lambda image, _: encoded(
        Image.open(io.BytesIO(resized(image, 0.5))), quality=60
    ),
}


def plant(paths: list[Path], folder: Path, n_copies: int, seed: int) -> pd.DataFrame:
    """Write copies of a seeded sample; return path, origin (an index of paths) and kind of each."""
    random = np.random.default_rng(seed)
    rows = []
    for number, (kind, copy) in enumerate(KINDS.items()):
        for origin in random.choice(len(paths), min(n_copies, len(paths)), replace=False):
            path = folder / f"{number}_{origin}"
            path.write_bytes(copy(Image.open(paths[origin]).convert("RGB"), random))
            rows.append((path, int(origin), kind))
    return pd.DataFrame(rows, columns=["path", "origin", "kind"])


def lesions(data: Path, paths: list[Path]) -> list[str | None]:
    tables = list(data.rglob("HAM10000_metadata.csv"))
    if not tables:
        return [None] * len(paths)
    table = pd.read_csv(tables[0]).set_index("image_id")["lesion_id"]
    return [table.get(path.stem) for path in paths]


def draw(pairs: pd.DataFrame, paths: list[Path], sheet: Path) -> None:
    """Draw pairs side by side, to be looked at."""
    width, height, columns = 410, 170, 4
    size = (width * columns, height * -(-len(pairs) // columns))
    picture = Image.new("RGB", (size[0], max(size[1], 1)), "white")
    for index, pair in enumerate(pairs.itertuples()):
        x, y = index % columns * width, index // columns * height
        for row, shift in ((pair.a, 0), (pair.b, 202)):
            picture.paste(Image.open(paths[row]).convert("RGB").resize((200, 150)), (x + shift, y))
        text = f"{paths[pair.a].stem} {paths[pair.b].stem} {pair.similarity:.3f}"
        ImageDraw.Draw(picture).text((x, y + 152), text, fill="black")
    picture.save(sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--copies", type=int, default=100, help="copies of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="draw the pairs that were not planted")
    options = parser.parse_args()
    real = sorted(path for path in options.data.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not real:
        sys.exit(f"{options.data}: no images")
    with tempfile.TemporaryDirectory() as folder:
        planted = plant(real, Path(folder), options.copies, options.seed)
        paths = real + list(planted["path"])
        sha256s = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        wall, cpu = time.perf_counter(), time.process_time()
        result = find_duplicates(paths, sha256s)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    report(options, real, planted, result.pairs, result.unreadable)
    print(f"{len(paths):,} images: {wall:.1f} s, {cpu:.1f} s of CPU time, 2 threads")


def report(
    options: argparse.Namespace,
    real: list[Path],
    planted: pd.DataFrame,
    pairs: pd.DataFrame,
    unreadable: dict[int, str],
) -> None:
    n = len(real)
    origin = np.concatenate([np.arange(n), planted["origin"].to_numpy()])
    together = set(zip(pairs["a"], pairs["b"], strict=True))
    hits = [(row, n + copy) in together for copy, row in enumerate(planted["origin"])]
    print(planted.assign(recall=hits).groupby("kind", sort=False)["recall"].mean().to_string())
    print(f"recall of the first seven kinds: {np.mean(hits[: 7 * options.copies]):.4f}")

    near = pairs[pairs["kind"] == "near"]
    others = near[origin[near["a"]] != origin[near["b"]]]
    print(f"precision: {1 - len(others) / max(len(near), 1):.4f} ({len(others)} of {len(near)})")
    lesion = lesions(options.data, real)
    same = [
        lesion[a] is not None and lesion[a] == lesion[b]
        for a, b in zip(origin[others["a"]], origin[others["b"]], strict=True)
    ]
    others = others.assign(one_lesion=same)[others["b"] < n]
    print(f"real pairs: {len(others)} near, {others['one_lesion'].sum()} of them of one lesion;")
    exact = pairs[(pairs["kind"] == "exact") & (pairs["b"] < n)]
    print(f"  exact: {len(exact)}; unreadable: {len(unreadable)}")
    for pair in pd.concat([exact, others]).itertuples():
        names = (str(real[row].relative_to(options.data)) for row in (pair.a, pair.b))
        print(f"  {pair.kind} {pair.similarity:.4f}", *names)
    if options.sheet:
        draw(others, real, options.sheet)


if __name__ == "__main__":
    main()
