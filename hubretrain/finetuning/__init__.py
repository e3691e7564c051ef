"""The fine-tuning stage: the shortlisted backbone, trained from its fitted head.

`finetune` is the stage, and `module` trains one module with the options of `options`. `trainer` is
the training, `epoch_loop` an epoch of it: batches of `input_pipeline`, graphs of `steps`, Adams of
`optimizers`, the policy of `schedule`, on `devices`. `epoch_recorder` records an epoch, for
TensorBoard too, and `checkpoints` lets training resume. `activation_cache` keeps the activations of
frozen layers, `result` holds metrics and predictions.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
