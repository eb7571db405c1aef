"""A layer's weight as torch's modules read it: one dense matrix. Gradients reach the halves; writes are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._compile import _disable_dynamo
from torch.utils._pytree import tree_leaves, tree_map

from blockshock.errors import InputError
from blockshock.methods import BlockShock, check_once

_WRITERS = {"__setitem__", "__set__", "__delete__"} | {
    f"__i{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
}


def whole_weight(layer: BlockShock) -> torch.Tensor:
    """The trained W (N, K) on every rank, differentiable; all ranks call it together.

    Raises:
        InputError: gradients are recorded, and ``fully_shard`` holds the parameters as shards.
    """
    if torch.is_grad_enabled() and any(half.is_spread for half in layer.storages()):
        raise InputError(
            "fully_shard holds the parameters of this layer as shards, to which no gradient of its weight would come: "
            "call unshard() on the module that it was applied to, or read the weight under torch.no_grad()"
        )
    w_NK = _gathered(layer)
    return w_NK if torch.compiler.is_compiling() else w_NK.as_subclass(WholeWeight)  # the compiler sees what is written


@_disable_dynamo
def _gathered(layer: BlockShock) -> torch.Tensor:
    w_NK: torch.Tensor = _Whole.apply(layer, *(half.parameter for half in layer.storages()))
    return w_NK


class WholeWeight(torch.Tensor):
    """A tensor made for those who read it: a write would be lost, and raises InputError, through a view too."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(target, WholeWeight) for target in _targets(func, args, kwargs)):
            raise InputError(
                f"{func.__name__} would write to the weight of a BlockShockLinear, which is put together from its "
                "halves each time that it is read: load_state_dict() writes to them, optimizers train parameters()"
            )
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
            memory = {_memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, WholeWeight)}
            return tree_map(lambda leaf: leaf.as_subclass(cls) if _is_view(leaf, memory) else leaf, found)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return self._plain().__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain().__reduce_ex__(protocol)

    def _plain(self) -> torch.Tensor:
        """A copy or a file holds its own values, which can be written."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(torch.Tensor)


def _targets(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a torch function writes to, by torch's conventions for names."""
    name = func.__name__
    in_place = name in _WRITERS or (name.endswith("_") and not name.endswith("__"))
    first = [args[0] if args else next(iter(kwargs.values()), None)] if in_place else []
    return tree_leaves([first, kwargs.get("out")])


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_view(found: Any, memory: set[int]) -> bool:
    return type(found) is torch.Tensor and found.layout == torch.strided and _memory(found) in memory


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: BlockShock, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.layer = layer
        return layer.whole([parameter.detach() for parameter in parameters], "weight")

    @staticmethod
    def backward(ctx: Any, grad_NK: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        if ctx.layer.group.size() > 1:
            check_once()  # what other ranks keep of it would be missing
        # Every rank makes the whole gradient, as it does of the output, and keeps its part.
        return None, *ctx.layer.held(grad_NK)
