"""Write scikit-learn's handwritten digits as PNG files: a real data set that needs no network.

1,797 images of 8 x 8 pixels, 43 writers' hands, ten classes; from the UCI repository:
https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main(folder: Path) -> None:
    """Write one folder per class below `folder`."""
    digits = load_digits()
    for i, (picture, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        class_folder = folder / str(digit)
        class_folder.mkdir(parents=True, exist_ok=True)
        ink = (255 - picture * 255 / 16).astype(np.uint8)  # 0 to 16 becomes dark on white
        Image.fromarray(ink).save(class_folder / f"{i:04d}.png")
    print(f"{len(digits.target):,} images of {len(set(digits.target))} classes in {folder}/")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
