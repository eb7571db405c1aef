"""A layer's weight as torch's modules read it: one dense matrix. Gradients reach its parts; writes are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.machine import torch_internals
from blockshock.methods import Method, Promise, check_once, check_untangent

_WRITERS = {"__setitem__", "__set__", "__delete__"} | {
    f"__i{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
}


def whole_weight(layer: Method) -> torch.Tensor:
    """The trained W (N, K) on every rank, differentiable; all ranks call it together.

    Raises:
        InputError: gradients are recorded, and ``fully_shard`` holds the parameters as shards; or a forward-mode
            derivative by them is asked for.
    """
    _check_together(layer)
    w_NK = _gathered(layer)
    return w_NK if torch.compiler.is_compiling() else w_NK.as_subclass(WholeWeight)  # the compiler sees what is written


@torch_internals.uncompiled
def _gathered(layer: Method) -> torch.Tensor:
    parameters = [storage.parameter for storage in layer.storages()]
    check_untangent(*parameters)
    return _Whole.apply(layer, *parameters)  # type: ignore[no-any-return]


def whole_bias(layer: Method) -> torch.Tensor:
    """The trained bias (N,) of a layer whose ranks hold parts of it, on every rank; as ``whole_weight``."""
    _check_together(layer)
    part = layer.storages()[0].trained("bias")
    check_untangent(part)
    b_N: torch.Tensor = _WholeBias.apply(layer, part)
    return b_N if torch.compiler.is_compiling() else b_N.as_subclass(WholeWeight)


def _check_together(layer: Method) -> None:
    if torch.is_grad_enabled() and any(storage.is_spread for storage in layer.storages()):
        raise InputError(
            "fully_shard holds the parameters of this layer as shards, to which no gradient of its weight would come: "
            "call unshard() on the module that it was applied to, or read the weight under torch.no_grad()"
        )


def keep_called(module: nn.Module, layer: Method) -> None:
    """Have torch's fast paths call the module, if its layer computes something else than a product by its weight.

    In compiled code the weight is a plain tensor, at which they do not stop; at a hook of a module they always do.
    """
    if layer.promise is Promise.LEARNS or layer.dtype != layer.parameter_dtype:
        module.register_forward_pre_hook(_nothing)


def _nothing(layer: nn.Module, args: tuple[Any, ...]) -> None:
    return None


class WholeWeight(torch.Tensor):
    """A tensor made for those who read it: a write would be lost, and raises InputError, through a view too."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(target, WholeWeight) for target in _targets(func, args, kwargs)):
            raise InputError(
                f"{func.__name__} would write to the weight of a replaced layer, which is put together each time that "
                "it is read: load_state_dict() writes to them, optimizers train parameters()"
            )
        with torch_internals.as_plain_tensors():
            found = func(*args, **kwargs)
            memory = {
                torch_internals.memory_of(leaf)
                for leaf in torch_internals.leaves((args, kwargs))
                if isinstance(leaf, WholeWeight)
            }
            return torch_internals.map_leaves(
                lambda leaf: leaf.as_subclass(cls) if _is_view(leaf, memory) else leaf, found
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return self._plain().__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain().__reduce_ex__(protocol)

    def _plain(self) -> torch.Tensor:
        """A copy or a file holds its own values, which can be written."""
        with torch_internals.as_plain_tensors():
            return self.as_subclass(torch.Tensor)


def _targets(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a torch function writes to, by torch's conventions for names."""
    name = func.__name__
    in_place = name in _WRITERS or (name.endswith("_") and not name.endswith("__"))
    first = [args[0] if args else next(iter(kwargs.values()), None)] if in_place else []
    return torch_internals.leaves([first, kwargs.get("out")])


def _is_view(found: Any, memory: set[int]) -> bool:
    return type(found) is torch.Tensor and found.layout == torch.strided and torch_internals.memory_of(found) in memory


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Method, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.layer = layer
        return layer.whole([parameter.detach() for parameter in parameters], "weight")

    @staticmethod
    def backward(ctx: Any, grad_NK: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        if ctx.layer.group.size() > 1:
            check_once()  # what other ranks keep of it would be missing
        # Every rank makes the whole gradient, as it does of the output, and keeps its part.
        return None, *ctx.layer.held(grad_NK)


class _WholeBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Method, part: torch.Tensor) -> torch.Tensor:
        ctx.layer = layer
        return layer.whole_bias(part)

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor) -> tuple[None, torch.Tensor]:  # type: ignore[override]
        check_once()
        return None, grad_N[ctx.layer.rows]
