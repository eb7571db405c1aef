"""The columns of x that a row-periodic mask keeps, on a GPU: one launch, which begins while the kernel before it ends.

PTX ISA, ``griddepcontrol``: the launch overlaps that kernel's tail, and waits for what it writes before it reads.
"""

from __future__ import annotations

from functools import cache

import torch

from blockshock.kernels.source import source_of
from blockshock.machine import compiled
from blockshock.machine.cuda_kernel import CudaKernel
from blockshock.matrices import Every

_DTYPES = (torch.bfloat16, torch.float16)
_THREADS, _WARP = 256, 32
_WORD, _COLUMNS = 8, 16
"""Numbers of a word of 16 bytes, and columns of x that a thread takes of a row."""
_MANY, _ROWS = 1 << 18, 4
"""So many threads from on, each takes several rows; of fewer, a GPU would idle."""
_MOST = 1 << 31


def picks(kept: Every, x_BK: torch.Tensor) -> bool:
    """Whether the columns are taken here: two of each four, of 16-bit rows that lie in words, by no compiler, and of
    what is not differentiated."""
    if not x_BK.is_cuda or torch.compiler.is_compiling() or (x_BK.requires_grad and torch.is_grad_enabled()):
        return False
    B, K = x_BK.shape
    apart = x_BK.stride(0) if B > 1 else K
    fits = x_BK.dtype in _DTYPES and (len(kept.positions), kept.width) == (2, 4) and 0 < B < _MOST and K % _COLUMNS == 0
    lies = x_BK.stride(1) == 1 and apart % _WORD == 0 and 0 < apart < _MOST and x_BK.data_ptr() % 16 == 0
    return fits and K > 0 and lies


def picked(kept: Every, x_BK: torch.Tensor) -> torch.Tensor:
    """As of ``Every.take``, of what is taken here."""
    B, K = x_BK.shape
    taken_BJ = torch.empty(B, K // 2, dtype=x_BK.dtype, device=x_BK.device)
    across = K // _COLUMNS
    rows = _ROWS if B * across >= _MANY else 1
    wide = _THREADS
    while wide > _WARP and wide >= 2 * across:
        wide //= 2
    grid = (-(-B // (rows * (_THREADS // wide))), -(-across // wide), 1)
    apart = (x_BK.stride(0) if B > 1 else K) // _WORD
    with torch.cuda.device(x_BK.device):
        kernel, early = _kernel(selector(kept), rows, x_BK.device)
        kernel(grid, (wide, _THREADS // wide, 1), [x_BK, taken_BJ, B, across, apart], early=early)
    return taken_BJ


def selector(kept: Every) -> int:
    """Which bytes of four numbers stay, for ``__byte_perm`` of the two words that hold them: the first in the lowest
    half byte."""
    found = [2 * position + byte for position in kept.positions for byte in (0, 1)]
    return sum(byte << (4 * place) for place, byte in enumerate(found))


@cache
def _kernel(selector: int, rows: int, device: torch.device) -> tuple[CudaKernel, bool]:
    """Of that GPU, which must be the current one, and whether it can begin early there."""
    found = compiled(source_of("pick"), "pick", {"SELECTOR": f"0x{selector:04x}", "ROWS": rows})
    return found, torch.cuda.get_device_capability(device)[0] >= 9
