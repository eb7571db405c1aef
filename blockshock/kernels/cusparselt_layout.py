"""How a packed matrix lies in memory as cuSPARSELt has it, found from what its compression makes of known matrices.

Of a matrix (R, C) of 16-bit numbers, R and C multiples of 64: the kept values (R, C/2), row by row, then 512 bytes of
places for each 64 × 64 numbers, one row of such blocks after the other. A group of four has four bits, the place of its
first kept value in the lower two and that of the second above. In a block those of row r and group g are number
(r3 g2 g0 g1 r0 r1 r2 r4 r5 g3), the lowest bit first. Tests compare it with what `_cslt_compress` made on an H100
(cuSPARSELt 0.8.0).
"""

from __future__ import annotations

import torch

from blockshock.errors import InputError
from blockshock.machine import torch_internals

TOKENS_MULTIPLE = 8
"""Rows of X that the product takes; others are padded with zeros."""
BYTES_TOKENS_MULTIPLE = 16
"""The same in eight bits."""
SIDE = 64
"""Of a block of places."""
READ = 64, 128
"""Rows and columns whose places a product in eight bits reads together."""
_BITS = (("r", 3), ("g", 2), ("g", 0), ("g", 1), ("r", 0), ("r", 1), ("r", 2), ("r", 4), ("r", 5), ("g", 3))


def compressed(w_NK: torch.Tensor) -> torch.Tensor:
    """A 2:4 matrix as cuSPARSELt has it, with room behind it for all that a product reads; its rows lie densely.

    torch gives room for the places of 64 × 64 numbers at a time. A product in eight bits reads those of 64 × 128, and
    where K is no multiple of these goes beyond it: where no memory follows, it ends in an illegal access (found by
    compute-sanitizer on an H100, torch 2.11 with cuSPARSELt 0.8).
    """
    packed, size = torch_internals.compress(w_NK), byte_packed_bytes(*w_NK.shape)
    if w_NK.itemsize > 1 or packed.numel() >= size:
        return packed
    return packed.new_empty(size)[: packed.numel()].view_as(packed).copy_(packed)


def byte_packed_bytes(N: int, K: int) -> int:
    """Bytes of kept values in eight bits, and of the places that are read with them."""
    rows, columns = READ
    return N * K // 2 + -(-N // rows) * rows * -(-K // columns) * columns // 8


def packed_as(x_RC: torch.Tensor, mask_RC: torch.Tensor) -> torch.Tensor:
    """The packing (R, 9/16 C) of a 16-bit matrix and of a mask that keeps two of each four along a row.

    Args:
        x_RC: fp16 or bf16; what the mask drops is not looked at.
        mask_RC: bool.

    Raises:
        InputError: the dtype is another, or R or C is not a multiple of 64.
    """
    check_packable(x_RC)
    (R, C), groups = x_RC.shape, mask_RC.unflatten(1, (-1, 4))
    order = (~groups).to(torch.uint8).sort(dim=-1, stable=True).indices[..., :2]  # those kept, from left to right
    values = x_RC.unflatten(1, (-1, 4)).gather(-1, order).flatten(1)
    nibbles = (order[..., 0] | order[..., 1] << 2).to(torch.uint8)
    places = torch.empty(R * C // 4, dtype=torch.uint8, device=x_RC.device)
    places[_numbers(R, C, x_RC.device)] = nibbles.flatten()
    metadata = (places[::2] | places[1::2] << 4).view(x_RC.dtype)
    return torch.cat([values.flatten(), metadata]).view(R, -1)


def dense_of(packed: torch.Tensor, C: int) -> torch.Tensor:
    """The matrix (R, C) that such a packing is of, zero where nothing is kept."""
    R, held = len(packed), packed.flatten()
    values, metadata = held[: R * C // 2].view(R, C // 4, 2), held[R * C // 2 :].view(torch.uint8)
    nibbles = torch.stack([metadata & 15, metadata >> 4], dim=1).flatten()[_numbers(R, C, packed.device)]
    order = torch.stack([nibbles & 3, nibbles >> 2], dim=1).view(R, C // 4, 2).long()
    return packed.new_zeros(R, C // 4, 4).scatter_(2, order, values).flatten(1)


def check_packable(x_RC: torch.Tensor) -> None:
    """Raises InputError for what this layout is not known for."""
    if x_RC.dtype not in (torch.float16, torch.bfloat16):
        raise InputError(f"what is packed in one pass is torch.float16 or torch.bfloat16, got {x_RC.dtype}")
    if x_RC.ndim != 2 or x_RC.shape[0] % SIDE or x_RC.shape[1] % SIDE:
        raise InputError(
            f"what is packed in one pass is a matrix whose sizes are multiples of {SIDE}, got {tuple(x_RC.shape)}: pad "
            "it with zeros"
        )


def _numbers(R: int, C: int, device: torch.device) -> torch.Tensor:
    """Where the four bits of each row's groups lie, (R · C/4,)."""
    index = {"r": torch.arange(R, device=device)[:, None], "g": torch.arange(C // 4, device=device)[None]}
    number = (index["r"] // SIDE * (C // SIDE) + index["g"] // (SIDE // 4)) << len(_BITS)
    for place, (of, bit) in enumerate(_BITS):
        number = number | (index[of] >> bit & 1) << place
    return number.flatten()
