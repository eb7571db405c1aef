"""Decay of what a mask drops, added to the gradient, so that a mask settles."""

from __future__ import annotations

import torch

from blockshock.errors import InputError
from blockshock.kernels import fours
from blockshock.registry import check_range
from blockshock.training.sparse.bits import mask_of_bits
from blockshock.training.sparse.groups import check_dense


@torch.no_grad()
def masked_decay_(grad: torch.Tensor, w: torch.Tensor, mask: torch.Tensor, decay: float) -> torch.Tensor:
    """grad += decay·(1 − mask)⊙w, in place and in one call; returns ``grad``.

    Of SR-STE (Zhou et al., arXiv 2102.04010, decay 2e-4) and FST (Hu et al., arXiv 2404.01847, 6e-5 to 2e-4), which
    adds it after clipping and before the optimizer, so that AdamW rescales it. Where the mask keeps, the gradient
    stays as it is.

    Args:
        grad, w: (…), floating-point; ``w`` of any such dtype, for what is added is of that of ``grad``.
        mask: bool (…), of what is kept; or of a matrix (R, C) its bits, int16 (R/4, C/4), as ``bits_of_mask`` makes
            them, which a GPU reads in less time.
        decay: at least 0, finite.

    Raises:
        InputError: shapes or devices differ, dtypes are others, ``decay`` is out of range, or ``grad`` is expanded.
    """
    check_range(0, torch.finfo(torch.float32).max, decay=decay)
    check_dense(grad=grad, w=w, mask=mask)
    if not (grad.is_floating_point() and w.is_floating_point()):
        raise InputError(f"gradients and weights are of a floating-point dtype, got {grad.dtype} and {w.dtype}")
    if mask.dtype not in (torch.bool, torch.int16):
        raise InputError(f"a mask is boolean, of what is kept, or its bits as int16; got {mask.dtype}")
    in_bits = mask.dtype == torch.int16
    masked = tuple(4 * size for size in mask.shape) if in_bits else mask.shape
    if not grad.shape == w.shape == masked or (in_bits and mask.ndim != 2):
        shapes = ", ".join(str(tuple(shape)) for shape in (grad.shape, w.shape, mask.shape))
        raise InputError(f"grad, w and mask must be of one shape, or its bits (R/4, C/4) of (R, C), got {shapes}")
    if not grad.device == w.device == mask.device:
        raise InputError(f"grad, w and mask must be on one device, got {grad.device}, {w.device}, {mask.device}")
    if any(size > 1 and stride == 0 for size, stride in zip(grad.shape, grad.stride(), strict=True)):
        raise InputError("grad is an expanded tensor, whose elements are one in memory: pass its clone()")
    alike = grad.dtype == w.dtype and mask.is_contiguous() and mask.data_ptr() % 4 == 0
    if alike and fours.takes(grad) and fours.takes(w):
        return fours.decay_dropped_(grad, w, mask, decay)
    kept = mask_of_bits(mask) if in_bits else mask
    # Of what is kept −0 is added, so that neither its gradient changes, nor a weight that is not finite reaches it.
    return grad.addcmul_(w.masked_fill(kept, -0.0), ~kept, value=decay)
