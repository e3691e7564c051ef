"""hubretrain: cache bottlenecks once, screen many heads honestly, fine-tune the winner.

This is the contents page. Every name is imported when it is first used, so that
`import hubretrain` imports neither TensorFlow nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hubretrain._version import __version__ as __version__

if TYPE_CHECKING:
    from hubretrain.bottlenecks import Bottlenecks as Bottlenecks
    from hubretrain.data.check import check_dataset as check_dataset
    from hubretrain.data.dataset import ImageDataset as ImageDataset
    from hubretrain.data.dataset import open_dataset as open_dataset
    from hubretrain.data.images.augmentation import Augmentation as Augmentation
    from hubretrain.errors import HubretrainError as HubretrainError
    from hubretrain.export.export import export_run as export_run
    from hubretrain.export.predict import predict_images as predict_images
    from hubretrain.extraction.cache import cache_bottlenecks as cache_bottlenecks
    from hubretrain.finetuning.finetune import finetune_module as finetune_module
    from hubretrain.heads.heads import Heads as Heads
    from hubretrain.modules import HubModule as HubModule
    from hubretrain.modules import resolve as resolve
    from hubretrain.modules.backbone import Backbone as Backbone
    from hubretrain.report.report import write_report as write_report
    from hubretrain.report.saliency.explain import explain_images as explain_images
    from hubretrain.runs import Run as Run
    from hubretrain.screening.fit import screen_modules as screen_modules
    from hubretrain.serving.serve import serve_export as serve_export

_HOME = {
    "Augmentation": "hubretrain.data.images.augmentation",
    "Backbone": "hubretrain.modules.backbone",
    "Bottlenecks": "hubretrain.bottlenecks",
    "Heads": "hubretrain.heads.heads",
    "HubModule": "hubretrain.modules",
    "HubretrainError": "hubretrain.errors",
    "ImageDataset": "hubretrain.data.dataset",
    "Run": "hubretrain.runs",
    "export_run": "hubretrain.export.export",
    "serve_export": "hubretrain.serving.serve",
    "cache_bottlenecks": "hubretrain.extraction.cache",
    "check_dataset": "hubretrain.data.check",
    "explain_images": "hubretrain.report.saliency.explain",
    "finetune_module": "hubretrain.finetuning.finetune",
    "screen_modules": "hubretrain.screening.fit",
    "open_dataset": "hubretrain.data.dataset",
    "predict_images": "hubretrain.export.predict",
    "resolve": "hubretrain.modules",
    "write_report": "hubretrain.report.report",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hubretrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
