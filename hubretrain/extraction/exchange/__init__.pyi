from .exporting import FORMATS as FORMATS
from .exporting import export_bottlenecks as export_bottlenecks
from .importing import ImportedModule as ImportedModule
from .importing import import_vectors as import_vectors
