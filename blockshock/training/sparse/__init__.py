"""The toolkit of 2:4 training, ``blockshock.sparse``: masks, estimators and decay, in plain torch, on any device.

Each function checks what it is given and then calls one form of it in torch.
"""

from blockshock.training.sparse.bits import bits_of_mask, mask_of_bits
from blockshock.training.sparse.decay import masked_decay_
from blockshock.training.sparse.masks import mask_24, transposable_mask
from blockshock.training.sparse.mvue import mvue_24
from blockshock.training.sparse.soft_threshold import fixed_scale, soft_threshold_24
from blockshock.training.sparse.sparse24 import Sparse24
from blockshock.training.sparse.step_adamw import StepAdamW

__all__ = [
    "Sparse24",
    "StepAdamW",
    "bits_of_mask",
    "fixed_scale",
    "mask_24",
    "mask_of_bits",
    "masked_decay_",
    "mvue_24",
    "soft_threshold_24",
    "transposable_mask",
]
