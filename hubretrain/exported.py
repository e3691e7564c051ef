"""What stands beside an exported model: ``export.json``. Reading it imports no TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hubretrain.errors import RunError

FACTS = "export.json"


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``export.json`` says.

    Raises:
        RunError: The folder holds no export, or half of one.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} is no export ({FACTS}: {error}); make one with: hubretrain finetune"
        ) from error
    if not isinstance(facts, dict) or not isinstance(facts.get("class_names"), list):
        raise RunError(f"{folder / FACTS} names no classes; export again.")
    return facts
