"""torch's block-sparse product: Triton kernels over kept blocks (BSR), tuned once for a GPU, weight, octave and dtype.

y = x Wᵀ with the bias in the same kernel, that of torch's ``bsr_dense_addmm``. A program multiplies one row of blocks
by a tile of tokens; what is dropped costs nothing, and rows of blocks of which more is kept take longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

import torch

from blockshock.errors import KernelUnavailable
from blockshock.kernels.algorithm_cache import AlgorithmCache
from blockshock.kernels.block_kernels import BLOCK_KERNELS, BlockKernel, BlockLayout, PackedBlocks
from blockshock.kernels.bsr_search import Found, Setting, default_for, search
from blockshock.kernels.layout import dense_rows
from blockshock.kernels.octaves import bucket_of
from blockshock.kernels.right import is_like, product
from blockshock.machine import is_capturing, torch_internals
from blockshock.matrices import Piece, generator, in_blocks
from blockshock.measure import timing
from blockshock.stages import stage

LEAST_SIZE = 16
"""Of a block that Triton multiplies. Smaller ones are stored in blocks of this size that hold one."""
MOST_TUNED = 8192
"""Tokens that a setting is searched with at most: more are more of the same."""
_ADDRESSED = 2**31
"""Elements of x, or of y, that the kernel counts in 32 bits."""
_TILES = 65535
"""Of tokens in a launch: a GPU's grids are no longer in their second direction."""

_settings = AlgorithmCache("bsr-checked", fits=lambda stored: Found.read(stored) is not None)


class Blocks(NamedTuple):
    """Kept blocks as of ``PackedBlocks``."""

    blocks: torch.Tensor
    columns: torch.Tensor
    starts: torch.Tensor

    @property
    def N(self) -> int:
        return (len(self.starts) - 1) * self.blocks.shape[1]

    def dense(self, K: int) -> torch.Tensor:
        """The (N, K) matrix."""
        w_NK = self.blocks.new_zeros(self.N, K)
        rows = torch.arange(len(self.starts) - 1, device=w_NK.device).repeat_interleave(self.starts.diff())
        in_blocks(w_NK, self.blocks.shape[1])[rows, self.columns] = self.blocks
        return w_NK


class PackedBsr(PackedBlocks):
    def __init__(self, piece: Piece, size: int, bias: torch.Tensor | None, tuned: bool) -> None:
        super().__init__(piece, size, bias)
        self._tuned = tuned
        self._chosen: dict[int, Setting] = {}

    @property
    def _blocks(self) -> Blocks:
        return Blocks(self.blocks, self.columns, self.starts)

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        if not len(x_BK):
            return x_BK.new_empty(0, self.N)
        setting = self._setting(x_BK)
        if torch.compiler.is_compiling():
            return _product(*self._blocks, x_BK, self.bias, *setting)
        with stage(self.product_stage):
            # To autograd a view is not the caller's to write over; nobody else has the rest of these rows.
            return multiplied(self._blocks, x_BK, self.bias, setting).data

    def _setting(self, x_BK: torch.Tensor) -> Setting:
        most = min(bucket_of(len(x_BK)), MOST_TUNED)
        if torch.compiler.is_compiling():
            return self._chosen.get(most, default_for(most))  # no search can be traced: run it once, then compile it
        if most not in self._chosen:
            found = self._find(most, x_BK) if self._tuned else Found(default_for(most))
            if found.setting is None:
                raise KernelUnavailable(
                    f"block kernel bsr: of what was tried for ({self.N}, {self.K}) in blocks of {self.size}, "
                    f"{x_BK.dtype} and up to {most} tokens, nothing multiplies right on this GPU: {found.name}; use "
                    "another block kernel"
                )
            self._chosen[most], self.algorithm = found.setting, found.name
        return self._chosen[most]

    def _find(self, most: int, x_BK: torch.Tensor) -> Found:
        if is_capturing(x_BK.device):
            raise KernelUnavailable("block kernel bsr: run the layer once before it is captured, so that it is tuned")
        layout = f"N{self.N} K{self.K} blocks {len(self.columns)} of {self.size}"
        key = f"{_library_key(x_BK.device)} {layout} B{most} {x_BK.dtype} bias={self.bias is not None}"

        found = Found.read(_settings.get(key, lambda: asdict(tuned(self._blocks, self.K, self.bias, most))))
        assert found is not None
        return found


def multiplied(blocks: Blocks, x_BK: torch.Tensor, bias: torch.Tensor | None, setting: Setting) -> torch.Tensor:
    """x @ Wᵀ (+ bias): (B, K) → (B, N). Stage ``layout``, where x does not lie in whole tiles of dense rows."""
    tokens, tile = len(x_BK), setting.tile
    if tokens % tile or x_BK.stride(1) != 1 or x_BK.stride(0) * tile >= _ADDRESSED:
        x_BK = dense_rows(x_BK, tile)
    y_BN = x_BK.new_empty(len(x_BK), blocks.N)
    tiles = min((_ADDRESSED - 1) // max(x_BK.stride(0), blocks.N) // tile, _TILES)
    with torch.cuda.device(x_BK.device if x_BK.is_cuda else -1):  # whose current stream the launches take
        for x_PK, y_PN in zip(x_BK.split(tiles * tile), y_BN.split(tiles * tile), strict=True):
            torch_internals.bsr_product(blocks, x_PK, bias, y_PN, setting)
    return y_BN[:tokens]


def compile_ahead(blocks: Blocks, x_BK: torch.Tensor, bias: torch.Tensor | None, settings: Sequence[Setting]) -> None:
    """Compile what ``multiplied`` launches by these settings side by side."""
    with torch.cuda.device(x_BK.device if x_BK.is_cuda else -1):  # for which they are compiled
        torch_internals.compile_bsr(blocks, x_BK, bias, x_BK.new_empty(1, blocks.N), settings)


def tuned(blocks: Blocks, K: int, bias: torch.Tensor | None, tokens: int) -> Found:
    """The fastest setting for so many tokens that multiplies random blocks in these places right.

    A bias is added to a sum before it is written, which takes what any setting takes: what is fastest without one is
    checked with it, and searched with it where it is wrong then.
    """
    device, dtype = blocks.blocks.device, blocks.blocks.dtype
    stream = generator(device, 5, 4)
    values = torch.randn(blocks.blocks.shape, device=device, generator=stream).mul_(K**-0.5).to(dtype)
    trial = blocks._replace(blocks=values)
    x_BK = torch.randn(tokens, K, device=device, generator=stream).to(dtype)
    exact, seconds = list(product(x_BK, trial.dense(K), None)), timing.medians(device, rounds=10)

    def is_right(y_BN: torch.Tensor, bias: torch.Tensor | None) -> bool:
        added = exact if bias is None else ((columns, sums + bias[columns].float()) for columns, sums in exact)
        return is_like(y_BN, added)

    def found_with(bias: torch.Tensor | None) -> Found:
        return search(
            blocks.blocks.shape[1],
            tokens,
            lambda setting: multiplied(trial, x_BK, bias, setting),
            lambda y_BN: is_right(y_BN, bias),
            seconds,
            lambda settings: compile_ahead(trial, x_BK, bias, settings),
        )

    found = found_with(None)
    if bias is None or found.setting is None or is_right(multiplied(trial, x_BK, bias, found.setting), bias):
        return found
    return found_with(bias)


def _library_key(device: torch.device) -> str:
    """The GPU and the versions that a setting is good for."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name} torch {torch.__version__}"


@torch.library.custom_op(
    "blockshock::bsr",
    mutates_args=(),
    schema="(Tensor blocks, Tensor columns, Tensor starts, Tensor x, Tensor? bias, int tile, int group, int stages, "
    "int warps) -> Tensor",
)
def _product(
    blocks: torch.Tensor,
    columns: torch.Tensor,
    starts: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    tile: int,
    group: int,
    stages: int,
    warps: int,
) -> torch.Tensor:
    """The product of compiled code, which knows how many tokens there are only when it runs."""
    return multiplied(Blocks(blocks, columns, starts), x, bias, Setting(tile, group, stages, warps))


@_product.register_fake
def _(blocks: torch.Tensor, columns: torch.Tensor, starts: torch.Tensor, x: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape[0], (starts.shape[0] - 1) * blocks.shape[1])


@BLOCK_KERNELS.register("bsr")
class Bsr(BlockKernel):
    """CUDA devices of compute capability 8.0 and up with triton, bf16 and fp16. Stores the kept blocks, those of 8 in
    blocks of 16 that hold one, and 8 bytes for each.

    Args:
        search: use the fastest setting that torch's own tuner finds for an octave of tokens, among a dozen at the most.
            Each is compiled once for all weights in blocks of that size, of that dtype, with a bias or without, which
            is what takes the time of a first search, up to some seconds; those after it try what is compiled.
            Otherwise a setting that is the same everywhere.
    """

    device_types = ("cuda",)
    dtypes = (torch.bfloat16, torch.float16)
    contender = True

    def __init__(self, search: bool = True) -> None:
        self.search = search

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if reason := super().unavailable(device, dtype):
            return reason
        if not torch_internals.has_bsr():
            return "is written in Triton, which torch does not find here: install triton, as torch's CUDA builds do"
        if not torch_internals.knows_bsr():
            version = torch.__version__
            return f"is written in Triton, which torch {version} calls with other arguments: take 2.11 to 2.13"
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 8 else f"is for compute capability 8.0 and up, this GPU has {major}.{minor}"

    def unsuitable(self, N: int, K: int, size: int) -> str | None:
        stored = max(size, LEAST_SIZE)
        if N % stored or K % stored:
            return f"multiplies blocks of {LEAST_SIZE} and up, which do not divide N = {N}, K = {K}"
        return None

    def stored(self, layout: BlockLayout) -> BlockLayout:
        size = max(layout.size, LEAST_SIZE)
        count = min(layout.count, layout.N // size * (layout.K // size))
        return BlockLayout(layout.N, layout.K, size, count)

    def build_bytes(self, layout: BlockLayout, itemsize: int) -> int:
        # The search holds random blocks in the same places, and the dense matrix of them.
        searched = self.stored(layout).value_bytes(itemsize) + layout.N * layout.K * itemsize
        return self.weight_bytes(layout, itemsize) + (searched if self.search else 0)

    def pack_forward(self, piece: Piece, size: int, bias: torch.Tensor | None) -> PackedBlocks:
        return PackedBsr(piece, max(size, LEAST_SIZE), bias, self.search)
