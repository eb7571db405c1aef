"""Any row of the table in the place of an ``nn.Linear``, for any torch model: one class for all methods.

    layer = MethodLinear(nn.Linear(1024, 4096), "block_shock-auto")

It computes what the method promises to: what the ``nn.Linear`` computed, or what its own W′ does. Input and output are
replicated over the ranks of its group: every rank passes the same x and gets the whole y.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError, StalePacking
from blockshock.kernels import build_kernel
from blockshock.machine import of_rank_0, slowest_of_ranks
from blockshock.matrices import MASK_KEYS, Mask
from blockshock.methods import Layer, Row
from blockshock.nn.arguments import check_x, takes_as_it_is
from blockshock.nn.layer_state import Saved, beside_weights, load_state
from blockshock.nn.nested import is_nested, map_rows
from blockshock.nn.replaceable import take_over
from blockshock.nn.suitable import settle
from blockshock.nn.whole_weight import keep_called, whole_bias, whole_weight
from blockshock.nn.wrappers import watch_wrappers
from blockshock.training import PROGRESS, Training, first_difference, replace, watch_scalers


class MethodLinear(nn.Module):
    """y = x Wᵀ + b by a method of the table, with W or, where its promise is *own weights*, its W′.

    Its parameters are what this rank holds of W, and its part of the bias. An optimizer's ``step()`` packs them again
    by itself; after any other change of a parameter call ``refresh()``. A forward pass raises StalePacking where that
    was forgotten, but for writes that torch does not count, and for compiled layers: ``check()`` finds those. Hooks of
    the linear, its mode and what of it is frozen come along. ``state_dict()`` holds what an ``nn.Linear``'s holds,
    ``weight`` and ``bias``, and where the method has one the mask; all ranks make it together. It loads into any
    number of ranks, kernel and storage of the same method.

    Args:
        linear: what to compute; where it lies, the layer will. Rank 0's values are used on all ranks.
        row: of the table, by its name: the method, then a spec of each of its axes in order. For those left out at the
            end what is usual is taken, as ``auto`` for a kernel.
        group: the ranks, as a process group or a one-dimensional DeviceMesh; None for the default group, or for this
            device alone if there is none. A method that runs on one device takes no more: on each rank the layer is
            its own, as an ``nn.Linear`` is.
        dtype: that the products are computed in; None for the linear's own, which the parameters keep in any case.
        tokens: rows of x that the kernel ``auto`` is chosen for.
        inputs: some x (…, in_features) for the pruner, where it looks at them; rank 0's are used on all ranks.

    Raises:
        UnknownName, InputError: there is no such row.
        InputError: this is not an nn.Linear on a device, or the method cannot take it; or it computes, holds or shares
            more than x Wᵀ + b, as pruned, adapted and tied ones do.
        KernelUnavailable: the kernel cannot run here.
    """

    row: Row
    mask: Mask | None

    def __init__(
        self,
        linear: nn.Linear,
        row: str | Row,
        group: Any = None,
        *,
        dtype: torch.dtype | None = None,
        tokens: int = 1024,
        inputs: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self._have_torch_watched()
        found = settle(self, linear, row, group, dtype=dtype, tokens=tokens, inputs=inputs)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.row, self.mask, self.tokens = found.row, found.mask, tokens
        layer = Layer(found.source, self.row.picks, tokens, training=Training(found.weight.dtype))
        self.layer = found.build(layer)
        self.layer.load(found.weight, found.bias)
        if build_kernel(layer.pick("kernel") or "dense").name == "auto":
            self.layer.join()  # it may take whatever is fastest
        for parameter in [one.parameter for one in self.layer.storages()] + [*self.layer.trained_beside().values()]:
            parameter.requires_grad_(linear.weight.requires_grad)
        if self.layer.bias is not None:
            self.layer.bias.requires_grad_(linear.bias.requires_grad)
            replace(linear.bias, self.layer.bias, type(self).__name__)
        take_over(linear, self)
        keep_called(self, self.layer)
        replace(linear.weight, self.layer.storages()[0].parameter, type(self).__name__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._have_torch_watched()

    @staticmethod
    def _have_torch_watched() -> None:
        """torch's wrappers and scalers are watched from the first layer on, be it built or read from a file."""
        watch_scalers()
        watch_wrappers()

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight (out_features, in_features), for modules that read it: differentiable, not to be written.

        It is put together anew each time, by a collective: all ranks read it together.
        """
        return whole_weight(self.layer)

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias (out_features,): the parameter, or where ranks hold parts of it, put together as ``weight`` is."""
        held = self.layer.bias
        return whole_bias(self.layer) if held is not None and self.layer.splits_bias else held

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x (…, in_features) → y (…, out_features). Under ``torch.autocast`` too in the dtype given to the layer.

        Args:
            input: x, by the name that it has in ``nn.Linear``.
        """
        # What attributes of modules are looked up in at last: at once, for small layers take as long as what is around.
        layer: Any = self._modules["layer"]
        if not takes_as_it_is(input, layer):
            return self._forward(input)
        x_BK = input if input.ndim == 2 else input.reshape(-1, layer.K)
        if layer.joined is None or torch.compiler.is_compiling():
            y: torch.Tensor = layer.multiply(x_BK, layer.exit)
        else:
            y = layer.joined(x_BK)
        return y if input.ndim == 2 else y.view(*input.shape[:-1], layer.N)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same of any x: refused in words, or made what is multiplied."""
        if is_nested(x, self.in_features):
            return map_rows(self.forward, x)
        check_x(x, self.in_features)
        device = self.layer.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.forward(x.to(self.layer.dtype))
        if self.layer.dtype != self.layer.parameter_dtype:
            x = x.to(self.layer.dtype)
        y: torch.Tensor = self.layer(x.reshape(-1, x.shape[-1]))
        return y if x.ndim == 2 else y.view(*x.shape[:-1], self.out_features)

    def refresh(self) -> None:
        """Make the products use the parameters as they are now."""
        self.layer.repack()

    def check(self) -> None:
        """Compare what multiplies with the parameters, both ways and bit for bit; all ranks call it together. It finds
        what no version counter sees: writes through ``parameter.data``, by a pointer, or under ``torch.compile``. It
        holds a second packing meanwhile, and waits for the device.

        Raises:
            InputError: ``fully_shard`` has spread the parameters: call the model's ``unshard()`` first.
            StalePacking: on every rank, if they differ on one; the first difference is named.
        """
        if any(storage.is_spread for storage in self.layer.storages()):
            raise InputError("check() needs whole parameters, and fully_shard has spread them: call unshard() first")
        self.layer.meet("check()")
        found, group = self._difference(), self.layer.group
        (where,) = slowest_of_ranks([0.0 if found is None else group.rank() + 1.0], self.layer.device, group)
        if where:
            raise StalePacking(found or f"rank {int(where) - 1} found a difference in this layer, and names it")

    def _difference(self) -> str | None:
        """What ``check`` finds on this rank."""
        bias = None if self.layer.splits_bias else self.layer.bias
        first_bias = of_rank_0(bias, self.layer.group)  # first: every rank must come by here
        for index, storage in enumerate(self.layer.storages()):
            if what := storage.difference():
                return (
                    f"{self.layer.part_name} {index}: {what}: call refresh() on the layer after each change of a "
                    "parameter by anything but an optimizer's step()"
                )
        if self.layer.joined and (what := self.layer.joined.difference()):
            return f"{what}: call refresh() on the layer after each change of a parameter by its data, or a pointer"
        if bias is not None and first_bias is not None and (what := first_difference(bias.detach(), first_bias)):
            return f"the bias, the same on all ranks, holds {what} as on rank 0: change it on every rank alike"
        return None

    def to_linear(self) -> nn.Linear:
        """The ``nn.Linear`` with this layer's weight and bias, exactly; all ranks call it together."""
        weight, bias = self.layer.whole_weight(), self.layer.bias
        linear = nn.Linear(self.in_features, self.out_features, bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, any(one.parameter.requires_grad for one in self.layer.storages()))
        if bias is not None:
            linear.bias = nn.Parameter(self._whole_bias(), bias.requires_grad)
        return linear.train(self.training)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """What ``layer.weight = parameter`` comes to: refused, for both are what multiplies."""
        if name in ("weight", "bias"):
            raise InputError(
                f"the {name} of a {type(self).__name__} cannot be another parameter: load_state_dict() sets it"
            )
        super().register_parameter(name, param)

    def _whole_bias(self) -> torch.Tensor:
        return self.layer.whole_bias(self.layer.storages()[0].trained("bias"))

    def extra_repr(self) -> str:
        layer = self.layer
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={layer.bias is not None}, "
            f"method={self.row.method}, ranks={layer.ranks}, {layer.algorithm}"
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.layer.whole_weight()
        if self.layer.bias is not None:
            destination[f"{prefix}bias"] = self._whole_bias()
        destination.update({f"{prefix}{name}": tensor for name, tensor in beside_weights(self).items()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, torch.Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for hook in self._load_state_dict_pre_hooks.values():
            hook(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        missing, unexpected, errors = load_state(self, state_dict, prefix)
        missing_keys += missing
        unexpected_keys += unexpected
        error_msgs += errors

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> MethodLinear:
        held, kind = self.layer.storages()[0].parameter, type(self).__name__
        was_shared = held.is_shared()
        changed = fn(held.detach()[:1])
        if held.is_shared() != was_shared:
            raise InputError(f"a {kind} cannot be shared between processes: what multiplies would not be")
        if (changed.dtype, changed.device) != (held.dtype, held.device):
            raise InputError(
                f"a {kind} stays where it was built, in {held.dtype} on {held.device}: move or cast the "
                "nn.Linear before, or build it from to_linear(). Of a model, what comes before this layer is moved or "
                "cast already: undo that in the same way"
            )
        return self


for saved in (*MASK_KEYS[1:], *PROGRESS):  # the mask itself is an attribute
    setattr(MethodLinear, saved, Saved(saved))
