"""The product of every method, forward and backward, in named stages.

In backward grad_y is made contiguous first: a loss such as ``y.sum()`` hands over an expanded tensor of stride zero,
which sparse kernels read as if it were dense memory. Then comes grad_X, and while the ranks agree on it, the gradient
of the weights (the order of Megatron-LM, Shoeybi et al., arXiv 1909.08053).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from blockshock.errors import InputError
from blockshock.kernels import Packed, PackedQuantised
from blockshock.machine import Entry, Exit, KeptColumns, Part, Peers, torch_internals
from blockshock.stages import copied, stage
from blockshock.training import Storage

Weight = Packed | Storage
"""A frozen weight, or one that is trained."""


def product(x_BK: torch.Tensor, weight: Weight, entry: Entry, exit: Exit) -> torch.Tensor:
    """exit(entry(x) Wᵀ + bias), differentiable once in x and in the parameters of a trained weight.

    Raises:
        InputError: in a functional transform, or forward-mode differentiation; in backward, with ``create_graph``.
    """
    return sum_of_products(x_BK, (weight,), entry, exit)


def sum_of_products(x_BK: torch.Tensor, weights: Sequence[Weight], entry: Entry, exit: Exit) -> torch.Tensor:
    """The same of a W that is the sum of several: one step to autograd, however many they are."""
    apply: Any = _apply
    if torch.compiler.is_compiling():
        apply = _Product.apply
    elif not torch_internals.is_plain(x_BK):
        check_untransformed(x_BK)
        check_untangent(*_trained(weights))
    if torch.is_grad_enabled():
        parameters = _trained(weights)
        if x_BK.requires_grad or parameters:
            return apply(x_BK, weights, entry, exit, *parameters)  # type: ignore[no-any-return]
    return _forward(weights, entry.take(x_BK), exit)


def _trained(weights: Sequence[Weight]) -> list[torch.Tensor | None]:
    """The parameter and the bias of each weight that is trained, in turn; of a frozen one nothing."""
    found: list[torch.Tensor | None] = []
    for weight in weights:
        if isinstance(weight, Storage):
            found += weight.differentiated(), weight._parameters["bias"]
    return found


def _forward(weights: Sequence[Weight], x_BK: torch.Tensor, exit: Exit) -> torch.Tensor:
    """exit(x Wᵀ + bias)."""
    if type(exit) is not Exit and len(weights) == 1:
        return exit.join(_part(weights[0], x_BK))
    first, *others = _outputs(weights, x_BK)
    y_BN = first
    for other_BN in others:
        y_BN = y_BN + other_BN
    return contiguous(y_BN) if type(exit) is Exit else exit.join(Part.of(y_BN))


def _outputs(weights: Sequence[Weight], x_BK: torch.Tensor) -> list[torch.Tensor]:
    """x Wᵀ + bias of each; in a format x is quantised once for all."""
    first = weights[0]
    if len(weights) == 1 or not isinstance(first, PackedQuantised) or not len(x_BK):
        return [weight(x_BK) for weight in weights]
    stored = first.stored(x_BK)
    packings = [weight for weight in weights if isinstance(weight, PackedQuantised)]
    return [packed.multiply(stored, x_BK.dtype) for packed in packings]


def _part(weight: Weight, x_BK: torch.Tensor) -> Part:
    """x Wᵀ + bias, made when it is asked for."""

    # Once for all chunks, and held until the part is made: copies between the products of chunks would hold up what
    # runs beside these.
    laid: list[torch.Tensor] = []

    def make(rows: slice | None, out: torch.Tensor | None = None) -> torch.Tensor:
        if out is None:
            return weight(x_BK if rows is None else x_BK[rows])
        multiplies = _checked(weight)
        if rows is None:
            return multiplies.into(x_BK, out)
        if not laid:
            laid.extend(multiplies.laid_out(x_BK))
        return multiplies.laid_into([held[rows] for held in laid], out)

    def fused(peers: Peers) -> torch.Tensor:
        return _checked(weight).summed(x_BK, peers)

    packed = _packed(weight)
    size = (x_BK.shape[0], packed.shape[0], x_BK.dtype, x_BK.device)
    return Part(make, *size, fused if packed.fuses else None)


def _backward(weights: Sequence[Weight], grad_y_BN: torch.Tensor, entry: Entry) -> Callable[[], torch.Tensor]:
    """Of grad_y W what the entry gives back, once it is waited for."""
    if type(entry) is not Entry and len(weights) == 1:
        return entry.give_back(_grad_part(weights[0], grad_y_BN, entry))
    grad_BK = weights[0].grad_input(grad_y_BN)
    for weight in weights[1:]:
        grad_BK = grad_BK + weight.grad_input(grad_y_BN)
    return entry.give_back(Part.of(grad_BK))


def _grad_part(weight: Weight, grad_y_BN: torch.Tensor, entry: Entry) -> Part:
    """grad_y W, made when it is asked for; of the columns that the product uses alone, where the entry is of these."""
    packed = _packed(weight)
    kept = entry.kept if isinstance(entry, KeptColumns) else None

    def make(rows: slice | None, out: torch.Tensor | None = None) -> torch.Tensor:
        grad = grad_y_BN if rows is None else grad_y_BN[rows]
        if kept is not None:
            return packed.grad_kept(grad, kept, out)
        return packed.grad_input(grad) if out is None else packed.grad_into(grad, out)

    features = packed.shape[1] if kept is None else packed.shape[1] // 2
    return Part(make, grad_y_BN.shape[0], features, grad_y_BN.dtype, grad_y_BN.device)


def _checked(weight: Weight) -> Packed:
    """What multiplies. Raises StalePacking if that is no longer what is trained."""
    return weight.checked() if isinstance(weight, Storage) else weight


def _packed(weight: Weight) -> Packed:
    return weight.packed if isinstance(weight, Storage) else weight


_INSTEAD = "leave this layer an nn.Linear (to_linear() makes it one) for that"


def check_untransformed(tensor: torch.Tensor) -> None:
    """No transform of torch's would see what ranks sum, nor what is packed."""
    if torch_internals.is_transformed(tensor):
        raise InputError(
            "a Block-Shock layer takes no part in functional transforms (vmap, torch.func.grad, jvp, jacrev, gradients "
            f"in batches): differentiate by backward(), one gradient at a time, or {_INSTEAD}"
        )
    check_untangent(tensor)


def check_untangent(*tensors: torch.Tensor | None) -> None:
    """Raises InputError if a forward-mode derivative by one of them is asked for."""
    if not torch_internals.in_forward_mode():
        return
    if any(one is not None and forward_ad.unpack_dual(one).tangent is not None for one in tensors):
        raise InputError(
            "a Block-Shock layer has no forward-mode derivative, by x or by its parameters: use backward(), or "
            f"{_INSTEAD}"
        )


def check_once() -> None:
    """Raises InputError in a backward pass whose gradients are to be differentiated: they would lack terms."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise InputError(
            "the gradients of a Block-Shock layer cannot be differentiated again: call backward() or grad() without "
            f"create_graph=True, or {_INSTEAD}"
        )


def contiguous(grad: torch.Tensor) -> torch.Tensor:
    if grad.is_contiguous():
        return grad
    with stage("layout"):
        return copied(grad.contiguous())


def without_checks(function: type[torch.autograd.Function]) -> Any:
    """What its ``apply`` comes to once that has seen that no functional transform is at work, as was seen before."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BK: torch.Tensor,
        weights: Sequence[Weight],
        entry: Entry,
        exit: Exit,
        *parameters: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.weights, ctx.entry, ctx.exit, ctx.writes = weights, entry, exit, None
        x_BS = entry.take(x_BK)
        if parameters and len(weights) == 1:
            x_BS = weights[0].used(x_BS)
        saved = [x_BS] if parameters else []
        if torch.compiler.is_compiling():
            # What backward reads of the packings then is watched by autograd, if it is saved.
            for weight in weights:
                saved = [*saved, *weight.tensors()]  # torch 2.11 traces no += of these
        else:
            ctx.writes = [weight.writes for weight in weights]
        ctx.save_for_backward(*saved)
        return _forward(weights, x_BS, exit)

    @staticmethod
    def backward(ctx: Any, grad_y_BN: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        is_compiling = torch.compiler.is_compiling()
        if not is_compiling and (torch.is_grad_enabled() or not torch_internals.is_plain(grad_y_BN)):
            check_once()
            check_untransformed(grad_y_BN)
        weights, (needs_x, _, _, _, *needed) = ctx.weights, ctx.needs_input_grad
        # Where a graph breaks, forward may have been compiled and backward not: autograd looks when it hands over.
        looks = any(needed[::2]) or ctx.writes is None
        saved: tuple[torch.Tensor, ...] = ctx.saved_tensors if looks else ()
        if needs_x and ctx.writes is not None and not is_compiling:
            for weight, writes in zip(weights, ctx.writes, strict=True):
                weight.check_since(writes)
        grad_y_BN = contiguous(ctx.exit.take_back(grad_y_BN))
        agree = _backward(weights, grad_y_BN, ctx.entry) if needs_x else None
        grads: list[torch.Tensor | None] = []
        for index, (needs_weight, needs_bias) in enumerate(zip(needed[::2], needed[1::2], strict=True)):
            grad_w = weights[index].grad_weight(grad_y_BN, saved[0]) if needs_weight else None
            grads += [grad_w, weights[index].grad_bias(grad_y_BN) if needs_bias else None]
        return (None if agree is None else agree()), None, None, None, *grads


_apply = without_checks(_Product)
