"""What a pruner keeps as a mask: of a dense layer that is cut by it into two halves, the first is the pruned one."""

from __future__ import annotations

from blockshock.errors import InputError, UnknownName
from blockshock.matrices import MASKS, Mask, Piece, WeightSource, build_mask
from blockshock.pruning.base import PRUNERS, Inputs, pruner_of
from blockshock.pruning.pruned import like, prune
from blockshock.registry import parse_spec


def mask_names() -> tuple[str, ...]:
    """The masks that have a name of their own, and the pruners that do not share it with one."""
    return tuple(dict.fromkeys((*MASKS.names(), *PRUNERS.names())))


def is_pruners(spec: str) -> bool:
    """Whether a mask's spec is that of a pruner, for what it keeps. Names of masks come first."""
    name = parse_spec(spec)[0]
    return name not in MASKS.names() and name in PRUNERS.names()


def check_mask(spec: str) -> None:
    """Raises UnknownName or InputError unless this is a spec of a mask, or of a pruner."""
    if is_pruners(spec):
        if pruner_of(spec)[2]:
            raise InputError(f"mask {spec}: halves are cut in W's own order of channels: leave out permute=yes")
        return
    try:
        MASKS.resolve(spec, skip=1)
    except UnknownName as error:
        others = (name for name in PRUNERS.names() if name not in MASKS.names())
        raise UnknownName(f"{error}; or a pruner, for what it keeps: {', '.join(others)}") from None


def mask_of(spec: str, source: WeightSource, inputs: Inputs | None) -> Mask:
    """The mask that a spec names, for these weights: one of MASKS, or what a pruner keeps of all of W.

    Raises:
        UnknownName, InputError, MaskError: as of ``build_mask`` and ``prune``.
    """
    check_mask(spec)
    return prune(spec, Piece(source), inputs).mask if is_pruners(spec) else build_mask(spec, source)


def typical_mask(spec: str, source: WeightSource) -> Mask:
    """The same, or where W would have to be pruned for it one that is to kernels as it is."""
    return like(spec, source) if is_pruners(spec) else build_mask(spec, source)
