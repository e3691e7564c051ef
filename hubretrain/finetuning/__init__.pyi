from .finetune import best_modules as best_modules
from .finetune import finetune_module as finetune_module
from .finetune import finetune_modules as finetune_modules
from .finetune import latest_finetuning as latest_finetuning
from .options import FineTuneOptions as FineTuneOptions
from .options import saved_tuning as saved_tuning
from .result import FineTuneResult as FineTuneResult
