"""A mask as plain tensors, for a state that is saved: its tile where it has one, its blocks, else the positions it
keeps; and the permutation of columns under which that is 2:4, where it has one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from blockshock.errors import InputError
from blockshock.matrices.block_mask import BlockMask, in_blocks
from blockshock.matrices.blocks_of_rows import row_blocks
from blockshock.matrices.mask_checks import check_2to4
from blockshock.matrices.masks import DenseMask, Mask, TiledMask
from blockshock.matrices.permuted import PermutedMask, check_permutation
from blockshock.matrices.positions import KeptMask, mask_positions

StoredMask = KeptMask  # as layers know it that were pickled before there were wings

MASK_KEYS = ("mask", "permutation")
"""Of a saved state: the tensors that a mask is."""


def settled(mask: Mask, device: torch.device) -> Mask:
    """The mask as it is now, on a device: one that is computed when asked for reads weights that may change, and cannot
    be saved; one out of a saved state lies on the CPU."""
    if mask.permutation is not None:
        return PermutedMask(settled(mask.ordered, device), mask.permutation.to(device))
    if mask.tile is not None:
        return mask if mask.tile.device == device else _mask_of(mask.tile.to(device), mask.N, mask.K)
    if isinstance(mask, BlockMask):
        inside = None if mask.inside is None else settled(mask.inside, device)
        return BlockMask(mask.kept_RC.to(device), mask.size, inside)
    if isinstance(mask, DenseMask) and mask.rows(0, 1).device == device:
        return mask
    return KeptMask(mask_positions(mask).to(device), mask.K)


def mask_tensor(mask: Mask) -> torch.Tensor:
    """A copy on the CPU: a boolean tile (P, Q); of blocks a boolean (N/size, K/size, 1, 1), or (…, size, size) where
    not all of a block is kept; or uint8 positions (N, ⌈K/8⌉) as of ``Compressed24``."""
    if isinstance(mask, BlockMask):
        blocks = mask.kept_RC[..., None, None] if mask.inside is None else in_blocks(mask.dense(), mask.size)
        return blocks.detach().cpu().clone(memory_format=torch.contiguous_format)
    if mask.tile is not None:
        return mask.tile.detach().cpu().clone()
    return mask_positions(mask).to("cpu", copy=True)


def mask_state(mask: Mask) -> dict[str, torch.Tensor]:
    """The tensors of a mask by their names in ``MASK_KEYS``, on the CPU."""
    permuted = {} if mask.permutation is None else {"permutation": mask.permutation.cpu().clone()}
    return {"mask": mask_tensor(mask.ordered), **permuted}


def mask_digest(mask: Mask) -> str:
    """Of those tensors a few digits, for ranks that say which mask they have."""
    whole = b"".join(tensor.numpy().tobytes() for tensor in mask_state(mask).values())
    return hashlib.sha256(whole).hexdigest()[:12]


def _mask_of(saved: torch.Tensor, N: int, K: int) -> Mask:
    if saved.dtype == torch.bool and saved.ndim == 4:
        return _blocks_of(saved, N, K)
    if saved.dtype == torch.bool:
        return TiledMask(saved, N, K)
    if saved.dtype != torch.uint8 or tuple(saved.shape) != (N, -(-K // 8)):
        raise InputError(f"not the mask of a ({N}, {K}) weight: {saved.dtype} {tuple(saved.shape)}")
    return KeptMask(saved.clone(), K)


def _blocks_of(saved: torch.Tensor, N: int, K: int) -> BlockMask:
    rows, columns, *of_block = saved.shape
    size = N // max(rows, 1)
    if (rows * size, columns * size) != (N, K) or of_block not in ([1, 1], [size, size]):
        raise InputError(f"not the blocks of a ({N}, {K}) weight: {tuple(saved.shape)}")
    inside = None if of_block == [1, 1] else DenseMask(saved.transpose(1, 2).reshape(N, K))
    return BlockMask(saved.flatten(2).any(-1), size, inside)


def saved_mask(state: Mapping[str, torch.Tensor], prefix: str = "") -> Mask:
    """The mask in a saved state, to build a layer that the state loads into.

    Args:
        prefix: of the layer's keys in the state, such as ``mlp.0.``.

    Raises:
        InputError: the state has no layer with a mask under that prefix.
        MaskError: what it has is neither a 2:4 mask nor one of blocks.
    """
    for name in ("weight", "mask"):
        if prefix + name not in state:
            near = sorted({key.removesuffix("mask") for key in state if key.endswith("mask")})
            raise InputError(f"the state has no {prefix + name!r}; prefixes of layers with a mask: {near or 'none'}")
    shape = tuple(state[prefix + "weight"].shape)
    if len(shape) != 2:
        raise InputError(f"{prefix + 'weight'!r} is not the (N, K) weight of a layer, but of shape {shape}")
    mask = _mask_of(state[prefix + "mask"], *shape)
    if not isinstance(mask, BlockMask):
        check_2to4(mask)
    order_K = state.get(prefix + "permutation")
    if order_K is None:
        return mask
    check_permutation(order_K, mask.K)
    return PermutedMask(mask, order_K.to(device=state[prefix + "mask"].device, copy=True))


def is_saved_mask(state: Mapping[str, torch.Tensor], mask: Mask) -> bool:
    """Whether the mask of a state is this one, or another form of it."""
    order_K = state.get("permutation")
    if (order_K is None) != (mask.permutation is None):
        return False
    if order_K is not None and mask.permutation is not None and not torch.equal(order_K.cpu(), mask.permutation.cpu()):
        return False
    return _is_tensor_of(state["mask"].cpu(), mask.ordered)


def _is_tensor_of(saved: torch.Tensor, mask: Mask) -> bool:
    ours = mask_tensor(mask)
    if (saved.dtype, saved.shape) == (ours.dtype, ours.shape):
        return torch.equal(saved, ours)
    try:
        theirs = _mask_of(saved, mask.N, mask.K)
    except ValueError:
        return False
    blocks = row_blocks(mask.N, mask.K)
    return all(torch.equal(theirs.rows(*block).cpu(), mask.rows(*block).cpu()) for block in blocks)


def faults_of_state(
    found: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]], mask: Mask | None, prefix: str
) -> list[str]:
    """Why a saved state cannot be loaded into a layer of such a mask; empty if it can.

    Args:
        found: the state's tensors, by their names in the layer.
        wanted: the layer's shapes by name.
        mask: None where the layer has none; then one in the state says nothing.
        prefix: of the names, in the texts.
    """
    wrong = [
        f"{prefix}{name} has shape {tuple(found[name].shape)}, this layer's is {shape}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    wrong += [
        f"{prefix}{name} is {found[name].dtype}, this layer's is real: load the part of it that is meant"
        for name in wanted
        if name in found and found[name].is_complex()
    ]
    if mask is not None and "mask" in found and not wrong and not is_saved_mask(found, mask):
        wrong.append(
            f"{prefix}mask is not this layer's: build the layer with mask=blockshock.saved_mask(state, prefix), "
            "or leave the mask out of the state to load the weights under this layer's own"
        )
    return wrong
