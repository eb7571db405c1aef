"""What a saved state is to a layer: W under the layer's own mask, or W′ under the mask that was saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from blockshock.errors import BlockShockError, InputError
from blockshock.matrices import (
    MASK_KEYS,
    Mask,
    TensorWeights,
    faults_of_state,
    is_saved_mask,
    mask_state,
    row_blocks,
    saved_mask,
    settled,
)
from blockshock.methods import Layer, Promise, Row
from blockshock.nn.suitable import mask_axis
from blockshock.training import Training, is_shard

if TYPE_CHECKING:
    from blockshock.nn.method_linear import MethodLinear


class Saved:
    """An attribute that is there where the state has it: torch's checkpoints look up what each of its names is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, layer: MethodLinear | None, kind: type) -> Saved | torch.Tensor:
        if layer is None:
            return self
        if (found := beside_weights(layer).get(self._name)) is None:
            raise AttributeError(f"this {kind.__name__} has no {self._name}")
        return found


def beside_weights(layer: MethodLinear) -> dict[str, torch.Tensor]:
    """What its state holds beside the weight and the bias: copies."""
    return {**({} if layer.mask is None else mask_state(layer.mask)), **layer.layer.progress()}


def load_state(
    layer: MethodLinear, state: Mapping[str, torch.Tensor], prefix: str
) -> tuple[list[str], list[str], list[str]]:
    """Load it, or say why it cannot be loaded, with nothing changed.

    Args:
        state: of the model.
        prefix: of the names that are this layer's.

    Returns:
        The names that it lacks, those that are not expected in it, and what is wrong with it.
    """
    wanted: dict[str, tuple[int, ...]] = {"weight": (layer.out_features, layer.in_features)}
    if layer.layer.bias is not None:
        wanted["bias"] = (layer.out_features,)
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    errors = [f"{prefix}{key} is no tensor" for key, value in found.items() if not torch.is_tensor(value)]
    # torch.distributed.checkpoint adds what it finds in the model itself.
    held = {id(tensor) for tensor in [*layer.parameters(), *layer.buffers()]}
    found = {key: value for key, value in found.items() if torch.is_tensor(value) and id(value) not in held}
    own = layer.row.kind.promise == Promise.OWN_WEIGHTS
    # W′ under another mask than its own is another layer: strict=True is there to tell, strict=False to mean it.
    missing = [prefix + name for name in [*wanted, *(["mask"] if own else [])] if name not in found]
    of_mask = MASK_KEYS if own else MASK_KEYS[:1] if layer.mask else ()
    known = {*wanted, *of_mask, *layer.layer.progress()}
    unexpected = [prefix + name for name in found if name not in known]
    return missing, unexpected, errors + _load(layer, found, wanted, prefix, own)


def _load(
    layer: MethodLinear,
    found: Mapping[str, torch.Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    prefix: str,
    own: bool,
) -> list[str]:
    """Load what was found of it, or say what is wrong.

    Args:
        wanted: the layer's shapes by name.
        own: the layer promises weights of its own, and its mask is the state's.
    """
    wrong = faults_of_state(found, wanted, None if own else layer.mask, prefix)
    if wrong or not found:
        return wrong
    found = {"weight": layer.layer.whole_weight(), **found}  # with strict=False, what is there is loaded
    try:
        if own:
            assert layer.mask is not None
            mask = saved_mask(found) if "mask" in found else layer.mask
            _check_dropped(found["weight"], mask)
            if "mask" in found and not is_saved_mask(found, layer.mask):
                _put_under(layer, mask, found["weight"])
    except BlockShockError as error:
        return [f"{prefix}weight: {error}"]
    progress = {name: tensor for name, tensor in found.items() if name in layer.layer.progress()}
    if progress and (fault := layer.layer.faults_of(progress)):
        return [f"{prefix}weight: {fault}"]
    layer.layer.load(found["weight"], found.get("bias"))
    if progress:
        layer.layer.resume(progress)
    return []


def _check_dropped(w_NK: torch.Tensor, mask: Mask) -> None:
    """Raises InputError where W′ holds something that its mask drops: it would be lost in silence."""
    for start, stop in row_blocks(mask.N, mask.K):
        lost = ((w_NK[start:stop] != 0) & ~mask.rows(start, stop).to(w_NK.device)).nonzero()
        if len(lost):
            row, column = lost[0].tolist()
            raise InputError(
                f"it holds {w_NK[start + row, column].item()} at row {start + row}, column {column}, which the mask "
                "drops, so this is not the state of such a layer: load it into the nn.Linear, and replace that"
            )


def _put_under(layer: MethodLinear, mask: Mask, w_NK: torch.Tensor) -> None:
    """Have the layer multiply by a W′ of another mask; its parameters stay the same ones, for optimizers hold them."""
    old = layer.layer
    old.meet("the loading of a state with another mask")
    if any(is_shard(storage.trained("parameter")) for storage in old.storages()):
        raise InputError("the state has another mask, and fully_shard holds the parameters: load it before")
    bias = None if old.bias is None else torch.zeros(old.N, dtype=old.bias.dtype, device=old.device)
    source = TensorWeights(w_NK.to(old.device, old.parameter_dtype), bias).cast(old.dtype)
    axis = mask_axis(layer.row)
    row = Row(layer.row.method, {**layer.row.picks, axis: settled(mask, old.device)})
    made = Layer(source, row.picks, layer.tokens, training=Training(old.parameter_dtype))
    new = row.kind(made, old.group, **row.parameters)
    for storage, before in zip(new.storages(), old.storages(), strict=True):
        before.parameter.data = storage.parameter.data
        storage.parameter, storage.bias = before.parameter, before.bias
    new.repack()
    if old.joined is not None:
        new.join()
    layer.row, layer.mask, layer.layer = row, row.picks[axis], new  # type: ignore[assignment]
