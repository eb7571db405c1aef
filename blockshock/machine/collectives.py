"""What the methods ask of a process group. Groups of one rank need no communication and get none."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from blockshock.errors import InputError
from blockshock.machine.borrowed import Borrowed
from blockshock.stages import copied, stage

Group = Any  # a ProcessGroup, or Alone

# The older name warns in torch 2.13, the newer is not there in 2.11.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Alone:
    """The group of one rank, where there is no process group."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def groups_of(group: Any) -> list[Group]:
    """The process groups that a user means: one, or that of each dimension of a DeviceMesh.

    Raises:
        InputError: this is neither.
    """
    if hasattr(group, "get_all_groups"):  # a DeviceMesh, whose import costs a second
        return list(group.get_all_groups())
    if not hasattr(group, "size") or not hasattr(group, "rank"):
        raise InputError(f"group must be a process group or a DeviceMesh, got {type(group).__name__}")
    return [group]


def ranks_of(group: Any) -> Group:
    """The process group that a user means for a layer; None for the default one, or for no group at all.

    A group of one rank is as good as none, and a layer without one can be pickled.

    Raises:
        InputError: this is no process group, nor a DeviceMesh of one dimension.
    """
    if group is None:
        group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else Alone()
    groups = groups_of(group)
    if len(groups) != 1:
        raise InputError(f"a layer takes a DeviceMesh of one dimension, got {len(groups)}: pick one of it")
    return groups[0] if groups[0].size() > 1 else Alone()


def global_ranks(group: Group) -> tuple[int, ...]:
    """The ranks of a group, as the default group counts them."""
    return (0,) if isinstance(group, Alone) else tuple(dist.get_process_group_ranks(group))


def of_rank_0(tensor: torch.Tensor | None, group: Group) -> torch.Tensor | None:
    """Rank 0's values of a tensor that all ranks have."""
    if tensor is None or group.size() == 1:
        return tensor if tensor is None else tensor.detach()
    same = tensor.detach().clone()
    dist.broadcast(same, dist.get_global_rank(group, 0), group=group)
    return same


def shard(total: int, index: int, count: int, what: str, multiple: int = 1) -> slice:
    """The ``index``-th of ``count`` equal contiguous parts of ``range(total)``.

    Raises:
        InputError: there is no such part, or the parts would not be equal, or not multiples of ``multiple``.
    """
    if not 0 <= index < count or multiple < 1 or total < 1:
        raise InputError(f"{what} = {total} has no shard {index} of {count}, of a multiple of {multiple}")
    if total % (count * multiple):
        step = math.lcm(count * multiple, 4)  # K must be a multiple of four whatever the shards
        raise InputError(
            f"{what} = {total} cannot be cut into {count} equal shards of a multiple of {multiple}; "
            f"the nearest that can is {max(total // step, 1) * step}"
        )
    size = total // count
    return slice(index * size, (index + 1) * size)


class Entry:
    """How a product takes its input, and what its grad_X becomes: here all of it, as it is.

    The two directions are conjugate (Megatron-LM, Shoeybi et al., arXiv 1909.08053, §3). Communication in backward
    is started by ``give_back`` and waited for by the call that it returns, so that other work fits between.
    """

    def take(self, x_BK: torch.Tensor) -> torch.Tensor:
        return x_BK

    def give_back(self, grad_x: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: grad_x


class _Columns(Entry):
    """Some columns of an input that every rank holds whole, a view; in backward the ranks agree on the gradient.

    Of an empty batch there is nothing to agree on, and no rank asks.
    """

    def __init__(self, group: Group, columns: slice = slice(None)) -> None:
        self._borrowed, self._columns = Borrowed(group), columns

    @property
    def _group(self) -> Group:
        return self._borrowed.group

    def take(self, x_BK: torch.Tensor) -> torch.Tensor:
        return x_BK[:, self._columns]

    def give_back(self, grad_x: torch.Tensor) -> Callable[[], torch.Tensor]:
        if self._group.size() == 1:
            return lambda: grad_x
        if not grad_x.is_contiguous():
            with stage("layout"):
                grad_x = copied(grad_x.contiguous())
        return self._agree(grad_x)

    def _agree(self, grad_x: torch.Tensor) -> Callable[[], torch.Tensor]:
        raise NotImplementedError


class Replicated(_Columns):
    """In backward the ranks' gradients are summed."""

    def _agree(self, grad_x: torch.Tensor) -> Callable[[], torch.Tensor]:
        if not len(grad_x):
            return lambda: grad_x
        return _started(partial(dist.all_reduce, grad_x, group=self._group), lambda: grad_x)


class ColumnShard(Replicated):
    """One of as many shards of columns as there are pairs of ranks; in backward they come together again."""

    def __init__(self, group: Group, columns: slice, K: int) -> None:
        super().__init__(group, columns)
        self._K = K

    def give_back(self, grad_x: torch.Tensor) -> Callable[[], torch.Tensor]:
        with stage("layout"):
            whole_BK = grad_x.new_zeros(len(grad_x), self._K)
            whole_BK[:, self._columns] = copied(grad_x)
        return super().give_back(whole_BK)


class OwnFeatures(_Columns):
    """This rank's feature shard; in backward the shards are gathered."""

    def _agree(self, grad_x: torch.Tensor) -> Callable[[], torch.Tensor]:
        if not len(grad_x):
            return lambda: grad_x.new_empty(0, self._group.size() * grad_x.shape[1])
        gathered = grad_x.new_empty(self._group.size() * grad_x.shape[0], grad_x.shape[1])
        return _started(
            partial(all_gather, gathered, grad_x, group=self._group),
            lambda: side_by_side(gathered, self._group),
        )


def _started(start: Callable[..., Any], result: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Start a collective now; the call that is returned waits for it and gives the result."""
    if torch.compiler.is_compiling():
        # It takes no asynchronous collective, and orders those it has by itself.
        start()
        return result
    with stage("reduce"):
        work = start(async_op=True)

    def finish() -> torch.Tensor:
        with stage("reduce"):
            work.wait()
        return result()

    return finish


def side_by_side(gathered: torch.Tensor, group: Group) -> torch.Tensor:
    """Of shards (B, S) one below the other, (B, G·S)."""
    with stage("layout"):
        return copied(torch.cat(gathered.chunk(group.size()), dim=1))


def slowest_of_ranks(seconds: list[float], device: torch.device, group: Group) -> list[float]:
    """Elementwise maximum over the ranks, the same list on every rank."""
    times = torch.tensor(seconds, dtype=torch.float64, device=device)
    if group.size() > 1:
        dist.all_reduce(times, op=dist.ReduceOp.MAX, group=group)
    return times.tolist()


def aligner(device: torch.device, group: Group) -> Callable[[], None]:
    """A call that all ranks pass together: on CUDA in stream order (it can be captured), on a CPU in program order."""
    token = torch.zeros(1, device=device)

    def align() -> None:
        if group.size() > 1:
            dist.all_reduce(token, group=group)

    return align
