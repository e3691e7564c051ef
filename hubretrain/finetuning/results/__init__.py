"""What a fine-tuning is worth: figures, and the choice of what is exported.

`criterion` compares epochs, `part_evaluator` evaluates a model, `result` holds what comes of it,
`mean` averages the model with the ensemble, `candidates` are the models that the export is chosen
from, and `leaderboard` gives them their rows.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
