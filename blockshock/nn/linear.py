"""BlockShockLinear: an ``nn.Linear`` whose weight is two 2:4 halves, each on its own rank, for any torch model.

    layer = BlockShockLinear(nn.Linear(1024, 4096), group)

It computes what the ``nn.Linear`` computed, and trains as it would have trained. Input and output are replicated: every
rank passes the same x and gets the whole y, as with ``ColwiseParallel(output_layouts=Replicate())``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from blockshock.errors import InputError, StalePacking
from blockshock.kernels import build_kernel
from blockshock.machine import Group, meet, ranks_of, slowest_of_ranks
from blockshock.matrices import (
    MOST_FEATURES,
    Mask,
    TensorWeights,
    build_mask,
    check_2to4,
    faults_of_state,
    mask_tensor,
    settled,
)
from blockshock.methods import BlockShock, Layer
from blockshock.nn.arguments import check_options, check_x
from blockshock.nn.replaceable import check_replaceable, take_over
from blockshock.nn.whole_weight import whole_weight
from blockshock.nn.wrappers import watch_wrappers
from blockshock.registry import check_range
from blockshock.training import Training, first_difference, gathered, replace, watch_scalers


class BlockShockLinear(nn.Module):
    """y = x Wᵀ + b with W = W⁰ + W¹: each half 2:4, and complementary.

    Its parameters are the halves of this rank and, on every rank, the bias. An optimizer's ``step()`` packs them again
    by itself; after any other change of a parameter call ``refresh()``. A forward pass raises StalePacking where that
    was forgotten, but for writes that torch does not count, and for compiled layers: ``check()`` finds those. Hooks of
    the linear, its mode and what of it is frozen come along. ``state_dict()`` holds what an ``nn.Linear``'s
    holds, ``weight`` and ``bias``, and the mask of the first half. All ranks make it together. It loads into any
    number of ranks, kernel and storage, with the same mask; an ``nn.Linear``'s loads too.

    Args:
        linear: what to compute; where it lies, the layer will. Rank 0's values are used on all ranks.
        group: the ranks, as a process group or a one-dimensional DeviceMesh; None for the default group, or for both
            halves on this device if there is none.
        mask: of the first half, by name or as a Mask; None for one that fits the kernel in both directions.
        kernel: as of the benchmark's ``--kernels``.
        storage: as of the benchmark's ``--storages``.
        dtype: that the products are computed in; None for the linear's own, which the parameters keep in any case.
        tokens: rows of x that the kernel ``auto`` is chosen for.

    Raises:
        InputError: this is not an nn.Linear on a device, or cannot be split like this; or it computes, holds or shares
            more than x Wᵀ + b, as pruned, adapted and tied ones do.
        KernelUnavailable: the kernel cannot run here.
    """

    def __init__(
        self,
        linear: nn.Linear,
        group: Any = None,
        *,
        mask: str | Mask | None = None,
        kernel: str = "auto",
        storage: str = "compressed",
        dtype: torch.dtype | None = None,
        tokens: int = 1024,
    ) -> None:
        super().__init__()
        self._have_torch_watched()
        check_options(mask, kernel, storage, dtype, tokens)
        check_replaceable(linear)
        if linear.weight.is_meta:
            raise InputError("the nn.Linear lies on the meta device: give it values (to_empty, then load) first")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        check_range(1, MOST_FEATURES, tokens=tokens)
        ranks = ranks_of(group)
        meet(ranks, f"the building of a BlockShockLinear ({linear.out_features}, {linear.in_features})")
        weight, bias = (_of_rank_0(tensor, ranks) for tensor in (linear.weight, linear.bias))
        assert weight is not None
        source = TensorWeights(weight, bias, of="rank 0's nn.Linear").cast(dtype or weight.dtype)
        name = build_kernel(kernel).training_mask if mask is None else mask
        self.mask = name if isinstance(name, Mask) else build_mask(name, source)
        if (self.mask.N, self.mask.K) != (source.N, source.K):
            raise InputError(
                f"the mask is for a ({self.mask.N}, {self.mask.K}) weight, this one is ({source.N}, {source.K})"
            )
        check_2to4(self.mask)
        self.mask = settled(self.mask)
        picks: dict[str, str | Mask] = {"kernel": kernel, "mask": self.mask, "storage": storage}
        layer = Layer(source, picks, tokens, training=Training(weight.dtype))
        self.layer = BlockShock(layer, ranks)
        self.layer.load(weight, bias)
        halves = self.layer.storages()
        for half in halves:
            half.parameter.requires_grad_(linear.weight.requires_grad)
        if self.bias is not None:
            self.bias.requires_grad_(linear.bias.requires_grad)
        take_over(linear, self)
        replace(linear.weight, halves[0].parameter)

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
    def bias(self) -> nn.Parameter | None:
        """The bias (out_features,), the same on every rank."""
        return self.layer.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x (…, in_features) → y (…, out_features). Under ``torch.autocast`` too in the dtype given to the layer.

        Args:
            input: x, by the name that it has in ``nn.Linear``.
        """
        x = input
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
        """Compare what multiplies with the parameters, both ways and bit for bit; all ranks call it together.

        It finds what no version counter sees: writes through ``parameter.data``, by a pointer, or under
        ``torch.compile``. It holds a second packing meanwhile, and waits for the device.

        Raises:
            InputError: ``fully_shard`` has spread the parameters: call the model's ``unshard()`` first.
            StalePacking: on every rank, if they differ on one; the first difference is named.
        """
        if any(half.is_spread for half in self.layer.storages()):
            raise InputError("check() needs whole parameters, and fully_shard has spread them: call unshard() first")
        self.layer.meet("check()")
        found, group = self._difference(), self.layer.group
        (where,) = slowest_of_ranks([0.0 if found is None else group.rank() + 1.0], self.layer.device, group)
        if where:
            raise StalePacking(found or f"rank {int(where) - 1} found a difference in this layer, and names it")

    def _difference(self) -> str | None:
        """What ``check`` finds on this rank."""
        bias, first_bias = self.bias, _of_rank_0(self.bias, self.layer.group)  # first: every rank must come by here
        for index, half in enumerate(self.layer.storages()):
            if what := half.difference():
                return (
                    f"half {index}: {what}: call refresh() on the layer after each change of a parameter by anything "
                    "but an optimizer's step()"
                )
        if bias is not None and first_bias is not None and (what := first_difference(bias.detach(), first_bias)):
            return f"the bias, the same on all ranks, holds {what} as on rank 0: change it on every rank alike"
        return None

    def to_linear(self) -> nn.Linear:
        """The ``nn.Linear`` with this layer's weight and bias, exactly; all ranks call it together."""
        weight, bias = self.layer.whole_weight(), self.bias
        linear = nn.Linear(self.in_features, self.out_features, bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, any(half.parameter.requires_grad for half in self.layer.storages()))
        if bias is not None:
            linear.bias = nn.Parameter(self._whole_bias(), bias.requires_grad)
        return linear.train(self.training)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """What ``layer.weight = parameter`` comes to: refused, for weight and bias are the halves'."""
        if name in ("weight", "bias"):
            raise InputError(f"the {name} of a BlockShockLinear cannot be another parameter: load_state_dict() sets it")
        super().register_parameter(name, param)

    def _whole_bias(self) -> torch.Tensor:
        return gathered(self.layer.storages()[0].trained("bias"), "bias").detach().clone()

    def extra_repr(self) -> str:
        layer = self.layer
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"ranks={layer.ranks}, {layer.algorithm}"
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.layer.whole_weight()
        if self.bias is not None:
            destination[f"{prefix}bias"] = self._whole_bias()
        destination[f"{prefix}mask"] = mask_tensor(self.mask)

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
        wanted: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias is not None:
            wanted["bias"] = (self.out_features,)
        found = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        error_msgs += [f"{prefix}{key} is no tensor" for key, value in found.items() if not torch.is_tensor(value)]
        # torch.distributed.checkpoint adds what it finds in the model itself.
        own = {id(tensor) for tensor in [*self.parameters(), *self.buffers()]}
        found = {key: value for key, value in found.items() if torch.is_tensor(value) and id(value) not in own}
        missing_keys += [prefix + name for name in wanted if name not in found]
        unexpected_keys += [prefix + name for name in found if name not in {*wanted, "mask"}]
        wrong = faults_of_state(found, wanted, self.mask, prefix)
        error_msgs += wrong
        if not wrong and "weight" in found:
            self.layer.load(found["weight"], found.get("bias"))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> BlockShockLinear:
        held = self.layer.storages()[0].parameter
        was_shared = held.is_shared()
        changed = fn(held.detach()[:1])
        if held.is_shared() != was_shared:
            raise InputError("a BlockShockLinear cannot be shared between processes: what multiplies would not be")
        if (changed.dtype, changed.device) != (held.dtype, held.device):
            raise InputError(
                f"a BlockShockLinear stays where it was built, in {held.dtype} on {held.device}: move or cast the "
                "nn.Linear before, or build it from to_linear(). Of a model, what comes before this layer is moved or "
                "cast already: undo that in the same way"
            )
        return self


def _of_rank_0(tensor: torch.Tensor | None, group: Group) -> torch.Tensor | None:
    """Rank 0's values of a tensor that all ranks have."""
    if tensor is None or group.size() == 1:
        return tensor if tensor is None else tensor.detach()
    same = tensor.detach().clone()
    dist.broadcast(same, dist.get_global_rank(group, 0), group=group)
    return same
