from . import formatting as formatting
from .fit import Screening as Screening
from .fit import screen_modules as screen_modules
from .options import ClassWeightByName as ClassWeightByName
from .options import ScreenOptions as ScreenOptions
