from .features import Features as Features
from .features import load_features as load_features
from .pairs import compare_runs as compare_runs
from .screening import Screening as Screening
