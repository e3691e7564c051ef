"""Take screenshots of a report with Chromium: by section, width and colour scheme.

hubretrain report demo/runs/digits
python examples/screenshots.py demo/runs/digits/report.html pictures/
python examples/screenshots.py demo/runs/digits/report.html docs/ --readme
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECTIONS = ("", "chosen", "feature-map", "saliency", "errors", "training", "data-set")
SCHEMES = {"light": 1, "dark": 0}
MOVE = """<script>{
  const heading = document.getElementById("%s");
  for (const bar of document.querySelectorAll("nav, .chosen-model")) bar.style.position = "static";
  if (heading) document.body.style.marginTop = `-${heading.offsetTop - 8}px`;
}</script>"""
README_PICTURES = {"report_model": ("chosen", "light"), "report_map": ("feature-map", "dark")}


def shot(browser: str, page: Path, file: Path, section: str, size: str, scheme: str) -> None:
    """Save a screenshot of the page from a section's heading on."""
    with tempfile.TemporaryDirectory() as profile:
        # A copy without the policy may run a script more, which moves the section to the top.
        text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"), count=1)
        moved = Path(profile) / "page.html"
        moved.write_text(text.replace("</body>", MOVE % section + "</body>"), encoding="utf-8")
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", f"--window-size={size}"]
        command += [f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"]
        command += [f"--screenshot={file}", moved.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    print(file)


def main() -> None:
    """Take the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--readme", action="store_true", help="the two pictures of the README")
    arguments = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("Chromium is not installed (on Debian: apt-get install chromium)")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.readme:
        for name, (section, scheme) in README_PICTURES.items():
            file = arguments.folder / f"{name}.png"
            shot(browser, arguments.page, file, section, "1100,820", scheme)
            Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)
        return
    for section in SECTIONS:
        for width in (1280, 400):
            for scheme in SCHEMES:
                file = arguments.folder / f"{section or 'leaderboard'}_{width}_{scheme}.png"
                shot(
                    browser,
                    arguments.page,
                    file,
                    section,
                    f"{width},1600",
                    scheme,
                )


if __name__ == "__main__":
    main()
