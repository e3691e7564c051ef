from .options import RaceOptions as RaceOptions
from .race import race_modules as race_modules
from .record import Race as Race
from .record import Rung as Rung
from .record import Standing as Standing
