from .build import build_module as build_module
from .importing import IMPORTED as IMPORTED
from .importing import ImportOptions as ImportOptions
from .importing import folder_of as folder_of
from .importing import import_into as import_into
from .keras_models import KERAS_SUFFIX as KERAS_SUFFIX
from .keras_models import read_keras_file as read_keras_file
