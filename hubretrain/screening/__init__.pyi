from .fit import screen_modules as screen_modules
from .leaderboard import Evaluator as Evaluator
from .leaderboard import per_class as per_class
from .screen import L2 as L2
