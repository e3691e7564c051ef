from .finetune import Resumption as Resumption
from .finetune import best_modules as best_modules
from .finetune import finetune_module as finetune_module
from .finetune import finetune_modules as finetune_modules
from .finetune import latest_finetuning as latest_finetuning
from .options import FineTuneOptions as FineTuneOptions
from .options import saved_options as saved_options
from .result import FineTuneResult as FineTuneResult
