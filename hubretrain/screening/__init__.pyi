from . import formatting as formatting
from .fit import screen_modules as screen_modules
from .fitted import Features as Features
from .fitted import Screening as Screening
from .fitted import compare_runs as compare_runs
from .fitted import load_features as load_features
from .options import ClassWeightByName as ClassWeightByName
from .options import ScreenOptions as ScreenOptions
