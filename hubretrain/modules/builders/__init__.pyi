from .build import build_module as build_module
from .keras_models import KERAS_SUFFIX as KERAS_SUFFIX
from .keras_models import read_keras_file as read_keras_file
