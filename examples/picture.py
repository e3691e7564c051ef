"""Draw the output of a terminal, read from standard input, as an SVG file.

make demo | python examples/picture.py docs/demo.svg
"""

from __future__ import annotations

import sys
from io import StringIO

from rich.console import Console
from rich.text import Text


def main(path: str) -> None:
    """Write the picture to `path`."""
    console = Console(record=True, width=140, file=StringIO())
    for line in sys.stdin.read().splitlines():
        style = "bold green" if line.startswith("$ ") else ""
        # SVG drops spaces at the start of a line; a blank Braille cell is as wide and stays.
        line = "\u2800" * (len(line) - len(line.lstrip(" "))) + line.lstrip(" ")
        console.print(Text(line, style=style), no_wrap=True, overflow="ignore", crop=False)
    console.save_svg(path, title="hubretrain")


if __name__ == "__main__":
    main(sys.argv[1])
