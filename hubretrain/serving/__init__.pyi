from .limits import ServeLimits as ServeLimits
from .serve import serve_export as serve_export
