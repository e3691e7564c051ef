from .table import Copies as Copies
from .table import near_copies as near_copies
