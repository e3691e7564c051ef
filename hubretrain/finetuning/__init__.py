"""The fine-tuning stage: the shortlisted backbone, trained from its fitted head.

`finetune` is the stage, `module` trains one module with the options of `options`; `trainer` is
the loop over `input_pipeline`, `steps`, `optimizers`, `schedule` and `devices`; `checkpoints`
resumes, `activation_cache` keeps what frozen layers give, `tensorboard` logs, `result` is what it
came to.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
