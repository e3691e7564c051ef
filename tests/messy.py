"""A small data set with everything wrong that there is, made of scikit-learn's photographs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_sample_images

from hubretrain.data.check import DataCheck
from tests.samples import encoded

SCRIPT = "<script>document.title='run'</script>"  # a class name


def photograph(which: int, left: int, top: int = 100, **options: int) -> bytes:
    pixels = load_sample_images().images[which][top : top + 200, left : left + 240]
    return encoded(pixels, "JPEG", **({"quality": 90} | options))


def recompressed(image: bytes) -> bytes:
    return encoded(np.asarray(Image.open(io.BytesIO(image))), "JPEG", quality=60)


def write_messy(root: Path) -> Path:
    """24 good photographs of two classes and a few bad files; `labels.csv` beside the folder."""
    root.mkdir(parents=True)
    rows = []

    def add(name: str, data: bytes, label: str, group: str = "", split: str = "train") -> None:
        (root / name).write_bytes(data)
        rows.append((name, label, group, split))

    for i in range(12):
        # Overlapping windows of one photograph: different pictures, no copies of each other.
        split = ("train", "train", "test")[i % 3]
        add(
            f"temple{i}.jpg",
            photograph(0, 80 * (i % 6), 100 + 60 * (i // 6)),
            "temple",
            split=split,
        )
        add(f"flower{i}.jpg", photograph(1, 80 * (i % 6), 100 + 60 * (i // 6)), SCRIPT, split=split)
    add("same.jpg", photograph(0, 0), SCRIPT, "g")  # as temple0.jpg, under another class
    add("near.jpg", recompressed(photograph(1, 160)), SCRIPT, "g")  # as flower2.jpg, a test image
    add("empty.jpg", b"", "temple")
    add("cut.jpg", photograph(0, 200)[:3000], "temple")
    add("named.jpg", encoded(load_sample_images().images[0][220:420, 200:440]), "Temple ")
    add("grey.png", encoded(load_sample_images().images[1][:150, :200, 0]), "temple")
    add("tiny.png", encoded(np.arange(243, dtype=np.uint8).reshape(9, 9, 3)), "temple")
    table = pd.DataFrame(rows, columns=["path", "label", "group", "split"])
    table["label"] = table["label"].replace({"Temple ": "Temple!"})
    table.to_csv(root.parent / "labels.csv", index=False)
    return root


def sentences(checked: DataCheck, level: str) -> list[str]:
    """What the findings of a level say."""
    return [finding.what for finding in checked.findings if finding.level == level]
