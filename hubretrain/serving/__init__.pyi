from .limits import Limits as Limits
from .serve import serve_export as serve_export
