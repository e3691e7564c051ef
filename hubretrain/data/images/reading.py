"""How the images of a data set are read: the bits that they use, and the largest one."""

from __future__ import annotations

from dataclasses import dataclass

# Photographs of 108 megapixels fit; 683 MiB, for Pillow stores red, green and blue in four bytes.
MAX_PIXELS = 178_956_970
MOST_PIXELS = 2**30  # 4 GiB
MAX_BITS = 16


@dataclass(frozen=True)
class Reading:
    """How the images of a data set are read.

    Attributes:
        bits: Bits that the values of 16-bit channels use, 8 to 16: 12 maps 4095, and what is
            above, to white.
        max_pixels: The largest image, width times height.
    """

    bits: int = MAX_BITS
    max_pixels: int = MAX_PIXELS
