from .fit import screen_modules as screen_modules
from .screen import L2 as L2
