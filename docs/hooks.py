"""Pages of the site that stand elsewhere in the repository, with their links kept right.

The README, the design, the room's READMEs and so on are written for whoever reads the repository.
Here each becomes a page of the site, and a relative link between two of them becomes a link
between two pages; `mkdocs build --strict` fails on one that leads nowhere.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = {  # file of the repository: page of the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "DESIGN.md": "design.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "cache/README.md": "cache.md",
    "data/README.md": "images.md",
    **{
        path.relative_to(REPOSITORY).as_posix(): "rooms/"
        + "-".join(path.relative_to(REPOSITORY / "hubretrain").parts[:-1])
        + ".md"
        for path in sorted((REPOSITORY / "hubretrain").rglob("README.md"))
    },
}
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for source, page in PAGES.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8")
        content = _LINK.sub(lambda link: _moved(link[1], source, page), text)  # noqa: B023
        files.append(File.generated(config, page, content=content))
    return files


def _moved(link: str, source: str, page: str) -> str:
    """Return the link of a file as a link of its page."""
    if "://" in link or link.startswith("mailto:"):
        return link
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if not (REPOSITORY / target).exists():
        raise PluginError(f"{source} links to {link}, which does not exist.")
    folder = f"{target}/README.md"
    target = PAGES.get(target) or PAGES.get(folder) or target.removeprefix("docs/")
    return posixpath.relpath(target, posixpath.dirname(page) or ".")
