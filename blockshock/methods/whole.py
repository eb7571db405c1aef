"""What a rank holds of W, and W as one matrix of what all hold: parameters, their gradients, an optimizer's states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn

from blockshock.kernels import Packed
from blockshock.machine import Alone, Group, held_bytes, meet
from blockshock.methods.joined import Joined
from blockshock.methods.kinds import Span
from blockshock.methods.product import Weight
from blockshock.training import SparseStorage, Storage, gathered, mark_split, spread_as


class Spread(nn.Module):
    """A layer of which this rank holds some rows and columns of W (N, K), and the bias of these rows.

    Attributes:
        span: as of ``kinds``; of what runs on one device each rank of a group holds all.
        rows, columns: of W, that this rank multiplies by.
        permutation: the order of W's columns, int64 (K,), in which those are; None where it is W's own.
        part_name: what messages call one of its weights.
        joined: what multiplies in place of the weights, where they are.
    """

    span: ClassVar[Span] = Span.GROUP
    part_name: ClassVar[str] = "weight"
    joined: Joined | None = None
    weight: Weight
    N: int
    K: int
    rows: slice
    columns: slice
    permutation: torch.Tensor | None = None
    device: torch.device
    group: Group
    _name: str

    def weights(self) -> list[Weight]:
        """What this rank multiplies by."""
        return [self.weight]

    def packings(self) -> list[Packed]:
        """The same as it is multiplied."""
        return [weight.packed if isinstance(weight, Storage) else weight for weight in self.weights()]

    def storages(self) -> list[Storage]:
        """The same, where it is trained."""
        return [trained(weight) for weight in self.weights()]

    def tensors(self) -> list[torch.Tensor]:
        """All that it holds: parameters, buffers, and what is packed of trained weights."""
        packed = [tensor for module in self.modules() if isinstance(module, Storage) for tensor in module.tensors()]
        return [*self.parameters(), *self.buffers(), *packed]

    def weight_bytes(self) -> int:
        """Bytes of the storages behind all of them, each storage once."""
        return held_bytes(self.tensors())

    @property
    def shared_bytes(self) -> int:
        """Bytes of what ranks read of each other, which layers of the same ranks share."""
        return 0

    @property
    def parameter_dtype(self) -> torch.dtype:
        return self.storages()[0].parameter.dtype

    @property
    def bias(self) -> nn.Parameter | None:
        """The trained bias of this rank's rows."""
        return self.storages()[0].bias

    @property
    def channels(self) -> slice | torch.Tensor:
        """Its columns, as W has them in its own order."""
        return self.columns if self.permutation is None else self.permutation[self.columns]

    def own(self, w_NK: torch.Tensor) -> torch.Tensor:
        """Its rows and columns of a matrix (N, K) whose columns are in W's own order, on its device."""
        channels = self.channels
        index = channels if isinstance(channels, slice) else channels.to(w_NK.device)
        return w_NK[self.rows, index].to(self.device)

    @property
    def splits_bias(self) -> bool:
        """Whether other ranks hold that of other rows."""
        return self.rows != slice(0, self.N)

    def split_parameters(self) -> Iterable[nn.Parameter]:
        """Those that are a part of a matrix: other ranks hold other parts, or they are kept values of it."""
        found = [weight for weight in self.weights() if isinstance(weight, SparseStorage)]
        return [storage.parameter for storage in found]

    def _mark_split(self) -> None:
        # What runs on one device is whole on each, whatever group they are in.
        group = self.group if self.span == Span.GROUP else Alone()
        for parameter in self.split_parameters():
            mark_split(parameter, group)

    def join(self) -> None:
        """From now on multiply by W as one matrix, where this rank holds all its kept values and that is faster."""

    def repack(self) -> None:
        """Multiply by the parameters as they are now, be they other ones too."""
        for storage in self.storages():
            storage.refresh()
        self._mark_split()

    @torch.no_grad()
    def load(self, w_NK: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Train on from a dense weight (N, K), the same on all ranks, exactly; and from a bias, if it is given."""
        if bias is not None and self.bias is not None:
            held = self.storages()[0].trained("bias")
            held.copy_(spread_as(held, bias[self.rows]))
        for storage in self.storages():
            storage.load(self.own(w_NK))

    def trained_beside(self) -> dict[str, nn.Parameter]:
        """What the optimizer trains beside W and its bias, by the names that ``progress`` has for it."""
        return {}

    def progress(self) -> dict[str, torch.Tensor]:
        """What training needs beside weights to go on from here: of a recipe. Its names begin with ``recipe``."""
        return {}

    def faults_of(self, progress: Mapping[str, torch.Tensor]) -> str | None:
        """Why it cannot go on from what ``progress`` gave; None if it can."""
        return None

    def resume(self, progress: Mapping[str, torch.Tensor]) -> None:
        """Go on from it, once the weights are loaded."""

    def place(self, w_NK: torch.Tensor) -> None:
        """Add what this rank holds of a trained W to a matrix of zeros; summed over the ranks, it is W."""
        self._place_all(w_NK, [storage.trained("parameter").detach() for storage in self.storages()])

    def _place_all(self, w_NK: torch.Tensor, held: list[torch.Tensor]) -> None:
        if self.span == Span.ONE and self.group.rank() > 0:
            return
        for storage, tensor in zip(self.storages(), held, strict=True):
            w_NK[self.rows, self.channels] += storage.dense(gathered(tensor, f"a {self.part_name}"))

    def whole_weight(self) -> torch.Tensor:
        """The trained W (N, K) on every rank, in the dtype of its parameters; all ranks call it together."""
        return self._from_all_ranks(self.place, (self.N, self.K), next(self.parameters()).dtype, "weight")

    def whole(self, held: list[torch.Tensor], what: str = "weight") -> torch.Tensor:
        """The (N, K) matrix on every rank of tensors that lie as this rank's parameters do; all ranks call it.

        Args:
            what: this is, for the ranks to see that they are in the same call.
        """
        shape = (self.N, self.K)
        return self._from_all_ranks(lambda w_NK: self._place_all(w_NK, held), shape, held[0].dtype, what)

    def held(self, w_NK: torch.Tensor) -> list[torch.Tensor]:
        """The inverse of ``whole``, of this rank."""
        return [storage.held(self.own(w_NK)) for storage in self.storages()]

    def whole_bias(self, held: torch.Tensor, what: str = "bias") -> torch.Tensor:
        """The (N,) tensor on every rank of one that lies as this rank's bias does; where it is split, all call it."""
        part = gathered(held, what).detach()
        if not self.splits_bias:
            return part.clone()

        def place(b_N: torch.Tensor) -> None:
            b_N[self.rows] += part

        return self._from_all_ranks(place, (self.N,), part.dtype, what)

    def _from_all_ranks(
        self, place: Callable[[torch.Tensor], None], shape: tuple[int, ...], dtype: torch.dtype, what: str
    ) -> torch.Tensor:
        """The sum over the ranks of what each places in a tensor of zeros."""
        self.meet(f"the gathering of {what}")
        whole = torch.zeros(shape, dtype=dtype, device=self.device)
        with torch.no_grad():
            place(whole)
        if self.group.size() > 1:
            dist.all_reduce(whole, group=self.group)
        return whole

    def meet(self, call: str) -> None:
        """Return when all ranks are in this call of this layer; raises RanksApart where they are not."""
        meet(self.group, f"{call} of {self._name}")


def trained(weight: Any) -> Storage:
    """A weight of a layer that is trained."""
    assert isinstance(weight, Storage), "the weights of this layer are frozen"
    return weight
