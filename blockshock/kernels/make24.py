"""Two of each four of a dense matrix, chosen and packed for the sparse tensor cores in one pass over the memory.

Sparse activations, and weights whose mask changes, are made 2:4 at every step: what that costs the product must win
back. torch's own kernel (``_sparse_semi_structured_tile``) takes three to four copies of its input, cuSPARSELt's
compression more; this one reads the input once and writes the packings, 9/16 of it each.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import NamedTuple

import torch

from blockshock.errors import InputError, KernelUnavailable
from blockshock.kernels.blocks24 import check_like, check_takes, launch, places_of
from blockshock.kernels.cusparselt_layout import SIDE
from blockshock.kernels.layout import dense_rows
from blockshock.kernels.source import source_of
from blockshock.machine import compiled, on_gpu
from blockshock.machine.cuda_kernel import CudaKernel

ALONG = ("rows", "columns", "tiles", "rows_first")
CHOICES = ("largest", "largest_size", "given", "soft", "mvue")
ACTIVATIONS = ("none", "relu", "relu2", "gelu")


class Made(NamedTuple):
    """What became of a matrix x (R, C), as far as it was asked for.

    Attributes:
        rows: x, 2:4 along its rows, packed as cuSPARSELt has it: (R, 9/16 C).
        columns: xᵀ, 2:4 along its own rows, (C, 9/16 R).
        mask: of tiles and of rows first: 16 bits for each 4 × 4 numbers, int16 (R/4, C/4), bit 4i + j that of row i and
            column j of them.
        sums: of what stays in each column of 64 rows, float32 (R/64, C).
        counts: how much of that is not zero, likewise.
        others: of the columns that are wanted dense, (2, columns, R): what stays of x, and of the function of z.
    """

    rows: torch.Tensor | None
    columns: torch.Tensor | None
    mask: torch.Tensor | None
    sums: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    others: torch.Tensor | None = None


class Making(NamedTuple):
    """How a matrix is made 2:4.

    Attributes:
        along: which of four numbers two stay: of ``rows``, of ``columns``, or of both at once in 4 × 4 ``tiles``; or of
            ``rows_first``, and of each four of a column the two largest sizes of what stays.
        choice: ``largest_size`` by \\|x\\|, or ``largest`` by x: the first ones among equals, and of tiles the best of
            all 90 masks; ``given``: a mask, of tiles or of rows; ``soft``: by \\|x\\|, less the third of them,
            times a scale (S-STE, arXiv 2409.09099); ``mvue``: the unbiased estimator of the least variance (arXiv
            2203.10991).
        activation: a function of x: ``relu``, ``relu2`` (its square) or ``gelu``.
        first: the choice is made by what the function gave; otherwise by x, and the function is of what stays.
        exact: sums of tiles are of float64, which has all bits of fp16, and of bf16 within 2⁴² of each other, and the
            first mask among equals is taken; otherwise of float32, which is faster: any of those may be taken, and one
            that is worse by the last bit.
    """

    along: str = "tiles"
    choice: str = "largest_size"
    activation: str = "none"
    first: bool = False
    exact: bool = False

    @property
    def masked(self) -> bool:
        """Whether a mask of both packings is made, or taken."""
        return self.along in ("tiles", "rows_first")

    def check(self) -> None:
        """Raises KernelUnavailable for what goes together with nothing."""
        for name, choices in (("along", ALONG), ("choice", CHOICES), ("activation", ACTIVATIONS)):
            if (found := getattr(self, name)) not in choices:
                raise KernelUnavailable(f"{name} {found!r} is not known: choose from {', '.join(choices)}")
        if self.choice in (("soft", "mvue") if self.masked else ("given",)):
            raise KernelUnavailable(f"choice {self.choice!r} is not one along {self.along}")


def make24(
    x_RC: torch.Tensor,
    making: Making,
    mask: torch.Tensor | None = None,
    scale: float = 1.0,
    seed: torch.Tensor | None = None,
    z_RC: torch.Tensor | None = None,
    with_sums: bool = False,
    with_counts: bool = False,
    others: torch.Tensor | None = None,
) -> Made:
    """Make a matrix 2:4. The same input and seed make the same bits.

    Args:
        x_RC: fp16 or bf16 on a GPU, R and C multiples of 64; copied first, as the stage ``layout``, where its rows do
            not lie densely.
        mask: of ``given``, as ``Made.mask``.
        scale: of ``soft``.
        seed: of ``mvue``: two random int32, on the device, so that a captured graph draws anew.
        z_RC: like x, which is then the gradient of the making's function of z, and first becomes that of z.
        with_sums: add up columns too, unless ``rows`` are all that is made.
        with_counts: count in columns what is not zero, of ``rows_first``; not beside sums.
        others: of ``rows_first``, with z: the columns that are wanted dense too, each once, int64.

    Raises:
        InputError: of x or z.
        KernelUnavailable: x is not on such a GPU, or the making is none.
    """
    making.check()
    check_takes(x_RC, x_RC)
    if z_RC is not None:
        check_like("z", z_RC, "x", x_RC)
    if (with_counts or others is not None) and making.along != "rows_first":
        raise KernelUnavailable(f"counts and dense columns are of rows_first, not along {making.along}")
    if (with_counts and with_sums) or (others is not None and z_RC is None):
        raise InputError("counts are not beside sums, and dense columns are of a gradient: give z too")
    x_RC, z_RC = dense_rows(x_RC), None if z_RC is None else dense_rows(z_RC)
    R, C = x_RC.shape
    held = R * C * 9 // 16
    rows = x_RC.new_empty(held).view(R, -1) if making.along != "columns" else None
    columns = x_RC.new_empty(held).view(C, -1) if making.along != "rows" else None
    if making.masked and making.choice != "given":
        mask = torch.empty(R // 4, C // 4, dtype=torch.int16, device=x_RC.device)
    adds_up = (with_sums or with_counts) and columns is not None
    sums = torch.empty(R // SIDE, C, device=x_RC.device) if adds_up else None
    many = 0 if others is None else len(others)
    places, dense = (None, None) if others is None else (places_of(others, C), x_RC.new_empty(2, many, R))
    # What is not asked for is neither read nor written: x stands for it.
    asked = (x_RC, rows, columns, mask, seed, z_RC, sums, places, dense)
    tensors = [x_RC if tensor is None else tensor for tensor in asked]
    (bits,) = struct.unpack("i", struct.pack("f", scale))
    flags = _Flags(z_RC is not None, with_sums and adds_up, with_counts, others is not None)
    with on_gpu(x_RC.device):
        kernel = _kernel(making, flags, x_RC.dtype, x_RC.device)
        launch(kernel, x_RC, [*tensors, many, R, C, bits])
    return Made(rows, columns, mask, sums if with_sums else None, sums if with_counts else None, dense)


class _Flags(NamedTuple):
    """What else a kernel does, as its macros have it."""

    back: bool
    sums: bool
    counts: bool
    others: bool


@cache
def _kernel(making: Making, asked: _Flags, dtype: torch.dtype, device: torch.device) -> CudaKernel:
    """For that GPU, which must be the current one."""
    source = source_of("wide", "pairs24", "choose24", "tile24", "make24")
    flags = {"FP32": False, "BF16": dtype == torch.bfloat16, "FIRST": making.first, "EXACT": making.exact}
    flags |= {name.upper(): flag for name, flag in asked._asdict().items()}
    definitions = {name: int(flag) for name, flag in flags.items()}
    names = {"ALONG": making.along, "CHOICE": making.choice, "ACTIVATION": making.activation}
    return compiled(source, "make24", definitions | {macro: name.upper() for macro, name in names.items()})
