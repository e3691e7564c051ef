"""hubretrain: cache bottlenecks once, screen many heads honestly, fine-tune the winner.

This is the contents page. Every name is imported when it is first used, so that
``import hubretrain`` imports neither TensorFlow nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hubretrain.augmentation import Augmentation as Augmentation
    from hubretrain.bottlenecks import Bottlenecks as Bottlenecks
    from hubretrain.cache import cache_bottlenecks as cache_bottlenecks
    from hubretrain.check import check_dataset as check_dataset
    from hubretrain.dataset import ImageDataset as ImageDataset
    from hubretrain.dataset import open_dataset as open_dataset
    from hubretrain.errors import HubretrainError as HubretrainError
    from hubretrain.export_run import export_run as export_run
    from hubretrain.finetune import finetune_module as finetune_module
    from hubretrain.fit import screen_modules as screen_modules
    from hubretrain.heads import Heads as Heads
    from hubretrain.modules import HubModule as HubModule
    from hubretrain.modules import resolve as resolve
    from hubretrain.modules.backbone import Backbone as Backbone
    from hubretrain.predict import predict_images as predict_images
    from hubretrain.report.explain import explain_images as explain_images
    from hubretrain.report.page import write_report as write_report
    from hubretrain.runs import Run as Run
    from hubretrain.serve import serve_export as serve_export

_HOME = {
    "Augmentation": "hubretrain.augmentation",
    "Backbone": "hubretrain.modules.backbone",
    "Bottlenecks": "hubretrain.bottlenecks",
    "Heads": "hubretrain.heads",
    "HubModule": "hubretrain.modules",
    "HubretrainError": "hubretrain.errors",
    "ImageDataset": "hubretrain.dataset",
    "Run": "hubretrain.runs",
    "export_run": "hubretrain.export_run",
    "serve_export": "hubretrain.serve",
    "cache_bottlenecks": "hubretrain.cache",
    "check_dataset": "hubretrain.check",
    "explain_images": "hubretrain.report.explain",
    "finetune_module": "hubretrain.finetune",
    "screen_modules": "hubretrain.fit",
    "open_dataset": "hubretrain.dataset",
    "predict_images": "hubretrain.predict",
    "resolve": "hubretrain.modules",
    "write_report": "hubretrain.report.page",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hubretrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
