from . import notes as notes
from .features import Features as Features
from .features import load_features as load_features
from .more_images import LearningCurve as LearningCurve
from .more_images import learning_curve as learning_curve
from .pairs import compare_runs as compare_runs
from .screening import Screening as Screening
