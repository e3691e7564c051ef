from .cache import cache_bottlenecks as cache_bottlenecks
from .maintenance import cache_status as cache_status
from .maintenance import collect_garbage as collect_garbage
from .maintenance import merge_parts as merge_parts
from .maintenance import verify_files as verify_files
from .options import CacheOptions as CacheOptions
from .plan import Part as Part
from .ray import Cluster as Cluster
