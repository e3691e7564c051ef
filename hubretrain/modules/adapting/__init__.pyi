from .functions import class_output as class_output
from .network import Network as Network
