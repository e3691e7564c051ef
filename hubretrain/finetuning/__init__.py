"""The fine-tuning stage: the shortlisted backbone, trained from its fitted head.

`finetune` is the stage, `plan` what it does in the time that is granted, and `module` trains one
module with the options of `options`. `trainer` is the training, `epoch_loop` an epoch of it and its
record, for TensorBoard too: batches of `input_pipeline`, graphs of `steps`, Adams of `optimizers`,
the policy of `schedule`, on `devices`. `checkpoints` lets training resume, `activation_cache` keeps
the activations of frozen layers, and the room `results` says what a training is worth.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
