"""The modules that can be cached: their catalogue, where they come from, how they are loaded.

This package is the one door to TensorFlow Hub. Importing it imports no TensorFlow.
"""

from hubretrain.modules.catalogue import HubModule, catalogue
from hubretrain.modules.store import (
    StoredModule,
    is_stored,
    present_digest,
    resolve,
    store_folder,
    stored,
)

__all__ = [
    "HubModule",
    "StoredModule",
    "catalogue",
    "is_stored",
    "present_digest",
    "resolve",
    "store_folder",
    "stored",
]
