"""What there is to pick for a method: kernels, masks, pruners, storages, ways to combine, blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from blockshock.kernels import (
    FORMATS,
    FORWARD_ALONE,
    KERNELS,
    build_format,
    build_kernel,
)
from blockshock.machine import COMBINES, combine_of, combines
from blockshock.matrices import MASKS, MOST_FEATURES
from blockshock.methods.axes import AXES, Axis, Beside, Picks, axis_of
from blockshock.methods.layer import Layer
from blockshock.pruning import (
    PRUNERS,
    check_mask,
    is_pruners,
    mask_names,
    pruner_of,
)
from blockshock.registry import split, whole
from blockshock.training import STORAGES, storage_of


@AXES.register("kernel")
class KernelAxis(Axis):
    """What multiplies."""

    registry = KERNELS
    about = "Default auto and the fast ones, with --formats those of formats alone (wgmma) too"
    beside = (Beside("--no-search", "cuSPARSELt runs its default algorithm, not the searched one"),)
    also = ("--formats",)
    with_method = True

    def check(self, spec: str) -> None:
        build_kernel(spec)

    def names(self, device: str) -> tuple[str, ...]:
        return tuple(name for name in KERNELS.names() if device in KERNELS.get(name).device_types)

    def asked(self, specs: tuple[str, ...] | None, device: str, beside: Mapping[str, Any]) -> tuple[str, ...]:
        kinds = ((name, KERNELS.get(name)) for name in self.names(device) if name != "auto")
        fast = (name for name, kind in kinds if kind.contender and (kind.plain or beside["--formats"]))
        specs = ("auto", *fast) if specs is None else specs
        if not beside["--no-search"]:
            return specs
        return tuple(f"{spec}:search=no" if spec in ("auto", "cusparselt") else spec for spec in specs)

    def each(self, device: str, picks: Picks) -> tuple[str, ...]:
        return tuple(name for name in self.covered(device) if name != "auto")  # which stands for one of them

    def covered(self, device: str) -> tuple[str, ...]:
        return tuple(name for name in self.names(device) if KERNELS.get(name).sparse and KERNELS.get(name).plain)

    def unavailable(self, spec: str, device: torch.device, dtype: torch.dtype) -> str | None:
        return build_kernel(spec).unavailable(device, dtype)

    def unsuitable(self, spec: str, layer: Layer) -> str | None:
        kernel, source = build_kernel(spec), layer.source
        if source.dtype not in kernel.dtypes:
            return f"does not multiply {source.dtype}"
        if not kernel.takes(layer.tokens):
            return f"kernel {spec} is for up to {kernel.most_tokens} tokens: leave it out with --kernels, or lower --B"
        if reason := kernel.unsuitable(source.N, source.K, source.dtype, layer.kept):
            return reason  # before the format is asked for, which raises where it is trained
        return kernel.without_format() if layer.format is None else None


class _Keeping(Axis):
    """What decides which two of each four are kept: usual is what fits the kernel, and the checks go through that."""

    holds_masks = True

    def each(self, device: str, picks: Picks) -> tuple[str, ...]:
        return self.usual(device, picks, both_ways=True)

    def unsuitable(self, spec: str, layer: Layer) -> str | None:
        _ = layer.kept  # it raises where it cannot be made for this layer
        return None


@AXES.register("mask")
class MaskAxis(_Keeping):
    """Which two of each four a half keeps."""

    registry = MASKS
    about = "Or a pruner that is none of these, for what it keeps. Default 1100; from phase 2 on what fits the kernel"

    def check(self, spec: str) -> None:
        check_mask(spec)

    def known(self) -> tuple[str, ...]:
        return mask_names()

    def needs_inputs(self, spec: str) -> bool:
        return is_pruners(spec) and pruner_of(spec)[0].needs_inputs

    def usual(self, device: str, picks: Picks, both_ways: bool) -> tuple[str, ...]:
        return (build_kernel(picks.get("kernel", "dense")).training_mask if both_ways else "1100",)


@AXES.register("pruner")
class PrunerAxis(_Keeping):
    """What turns W into W′."""

    registry = PRUNERS
    about = "Default magnitude, or what fits the kernel"

    def check(self, spec: str) -> None:
        pruner_of(spec)

    def needs_inputs(self, spec: str) -> bool:
        return pruner_of(spec)[0].needs_inputs

    def covered(self, device: str) -> tuple[str, ...]:
        return tuple(name for name in self.names(device) if device != "cpu" or not PRUNERS.get(name).slow)

    def usual(self, device: str, picks: Picks, both_ways: bool) -> tuple[str, ...]:
        kernel = build_kernel(picks.get("kernel", "dense"))
        return (kernel.training_pruner if both_ways else kernel.pruner,)


@AXES.register("storage")
class StorageAxis(Axis):
    """How a piece is held while it is trained."""

    registry = STORAGES
    beside = (
        Beside(
            "--recompress-every",
            "steps from one compression of masked storage to the next: whole numbers, and never. Default 1",
            "K,K",
        ),
    )
    trained_only = True

    def check(self, spec: str) -> None:
        storage_of(spec)

    def asked(self, specs: tuple[str, ...] | None, device: str, beside: Mapping[str, Any]) -> tuple[str, ...]:
        """``masked`` is picked once for each cadence of compression."""
        option = "--recompress-every"
        text = "1" if beside[option] is None else beside[option]
        cadences = [
            0 if part == "never" else whole(option, part, most=MOST_FEATURES)
            for part in split(option, text, "whole numbers, never")
        ]
        every = ["masked" if steps == 1 else f"masked:every={steps}" for steps in cadences]
        specs = self.names(device) if specs is None else specs
        return tuple(dict.fromkeys(found for spec in specs for found in (every if spec == "masked" else [spec])))


@AXES.register("combine")
class CombineAxis(Axis):
    """How ranks make one output of their parts."""

    registry = COMBINES
    about = "Default nccl, and on GPUs auto with the kernel auto; dense alternatives have nccl too"
    unsaid, of_ranks = "nccl", True

    def check(self, spec: str) -> None:
        combine_of(spec)

    def names(self, device: str) -> tuple[str, ...]:
        return tuple(name for name in COMBINES.names() if device in COMBINES.get(name).device_types)

    def usual(self, device: str, picks: Picks, both_ways: bool) -> tuple[str, ...]:
        fastest = "auto" in self.names(device) and picks.get("kernel", "auto") == "auto"
        return ("nccl", "auto") if fastest else ("nccl",)

    def each(self, device: str, picks: Picks) -> tuple[str, ...]:
        # All but nccl share how a part goes through their memory, and sums have the same bits.
        return tuple(name for name in self.covered(device) if name in ("nccl", "two_shot"))

    def covered(self, device: str) -> tuple[str, ...]:
        return tuple(name for name in self.names(device) if name != "auto")

    def unavailable(self, spec: str, device: torch.device, dtype: torch.dtype) -> str | None:
        return combine_of(spec)[0].unavailable(device, dtype)

    def unsuitable(self, spec: str, layer: Layer) -> str | None:
        kernel, is_fused = layer.pick("kernel"), combine_of(spec)[0].is_fused
        if is_fused and (reason := _without_sum(kernel or "dense", layer)):
            return reason
        if is_fused and layer.format is not None:
            return f"the sum is the kernel's, and in {layer.format.name} it has none: pick two_shot, or format plain"
        return combines.unsuitable(spec, layer.ranks, layer.tokens)


def _without_sum(kernel: str, layer: Layer) -> str | None:
    """None, or why a kernel does not sum over the ranks itself; auto takes one that does."""
    able = [name for name in KERNELS.names() if KERNELS.get(name).fuses]
    if build_kernel(kernel).name == "auto":
        reasons = [axis_of("kernel").unsuitable(name, layer) for name in able]
        return f"the sum is the kernel's, and {' and '.join(able)} cannot: {reasons[0]}" if all(reasons) else None
    fuses = build_kernel(kernel).fuses
    return None if fuses else f"the sum is the kernel's, and kernel {kernel} has none: pick {' or '.join(able)}"


@AXES.register("format")
class FormatAxis(Axis):
    """How the numbers of a product are stored."""

    registry = FORMATS
    about = (
        "Default plain: in the dtype; the others go forward alone; fp8_e5m2 has W in e5m2; dense alternatives are "
        "plain too"
    )
    unsaid = "plain"
    small = True

    def usual(self, device: str, picks: Picks, both_ways: bool) -> tuple[str, ...]:
        return ("plain",)

    def each(self, device: str, picks: Picks) -> tuple[str, ...]:
        return ("plain",)  # nothing else is trained, and outputs fed back are quantised anew at each step

    def covered(self, device: str) -> tuple[str, ...]:
        return ("plain",)  # each with each row that takes it: tests/methods/test_quantised_rows.py

    def unavailable(self, spec: str, device: torch.device, dtype: torch.dtype) -> str | None:
        format = build_format(spec)
        return None if format is None else format.unavailable(device, dtype)

    def unsuitable(self, spec: str, layer: Layer) -> str | None:
        format, source = build_format(spec), layer.source
        if format is None:
            return None
        if layer.both_ways:
            return f"{FORWARD_ALONE}: leave it out where anything is trained or differentiated"
        kernel = layer.pick("kernel")
        if kernel is None:
            return None
        return build_kernel(kernel).unsuitable_format(format, source.N, source.K, source.dtype)
