"""What there is to pick for block-sparse methods: what multiplies blocks, and which of them are kept."""

from __future__ import annotations

import torch

from blockshock.kernels import BLOCK_KERNELS, build_block_kernel
from blockshock.methods.axes import AXES, Axis, Picks
from blockshock.methods.layer import Layer
from blockshock.pruning import BLOCK_MASKS, BLOCK_SCORES, block_choice


@AXES.register("block_kernel")
class BlockKernelAxis(Axis):
    """What multiplies by blocks."""

    registry = BLOCK_KERNELS
    about = "Default the fast ones; on a CPU, which has none, reference"
    with_method = True

    def check(self, spec: str) -> None:
        build_block_kernel(spec)

    def names(self, device: str) -> tuple[str, ...]:
        return tuple(name for name in BLOCK_KERNELS.names() if device in BLOCK_KERNELS.get(name).device_types)

    def usual(self, device: str, picks: Picks, both_ways: bool) -> tuple[str, ...]:
        return tuple(name for name in self.names(device) if BLOCK_KERNELS.get(name).contender) or ("reference",)

    def each(self, device: str, picks: Picks) -> tuple[str, ...]:
        return self.usual(device, picks, both_ways=True)

    def unavailable(self, spec: str, device: torch.device, dtype: torch.dtype) -> str | None:
        return build_block_kernel(spec).unavailable(device, dtype)

    def unsuitable(self, spec: str, layer: Layer) -> str | None:
        kernel, source = build_block_kernel(spec), layer.source
        if source.dtype not in kernel.dtypes:
            return f"does not multiply {source.dtype}"
        return kernel.unsuitable(source.N, source.K, layer.block_size)


@AXES.register("block_mask")
class BlockMaskAxis(Axis):
    """Which blocks are kept."""

    registry = BLOCK_MASKS
    about = "Default blocks of 64 at level 0.9, by magnitude"
    holds_masks = small = True

    def check(self, spec: str) -> None:
        block_choice(spec)

    def needs_inputs(self, spec: str) -> bool:
        return block_choice(spec).scores.needs_inputs

    def usual(self, device: str, picks: Picks, both_ways: bool) -> tuple[str, ...]:
        return ("blocks:size=64:level=0.9",)

    def each(self, device: str, picks: Picks) -> tuple[str, ...]:
        return ("blocks:size=16:level=0.5",)  # what has a few blocks left learns nothing, and fed back it dies out

    def covered(self, device: str) -> tuple[str, ...]:
        return tuple(f"{name}:by={score}" for name in BLOCK_MASKS.names() for score in BLOCK_SCORES.names())

    def unsuitable(self, spec: str, layer: Layer) -> str | None:
        return block_choice(spec).unsuitable(layer.source.N, layer.source.K)
