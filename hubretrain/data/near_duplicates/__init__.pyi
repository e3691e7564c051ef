from .table import NearDuplicates as NearDuplicates
from .table import find_near_duplicates as find_near_duplicates
from .table import read_near_duplicates as read_near_duplicates
