"""What breaks without each of torch's private parts, and whether it does what it did: the doctor tries all of them."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import forward_ad

from blockshock.machine import torch_internals as internals
from blockshock.machine.internal import Internal, check
from blockshock.machine.tried_on_gpus import ON_GPUS


def _try_version() -> None:
    tensor = torch.zeros(1)
    before = internals.version(tensor)
    tensor[:].add_(1)
    check(internals.version(tensor) > before)


def _try_memory() -> None:
    tensor = torch.zeros(2)
    check(internals.memory_of(tensor) == internals.memory_of(tensor[1:]) != internals.memory_of(torch.zeros(2)))


def _try_local() -> None:
    check("_local_tensor" in importlib.import_module("torch.distributed.tensor").DTensor.__slots__)


def _try_transforms() -> None:
    seen = []
    torch.func.vmap(lambda x: seen.append(internals.is_transformed(x)) or x)(torch.zeros(2))  # type: ignore[func-returns-value]
    check(seen == [True] and not internals.is_transformed(torch.zeros(2)))


def _try_forward_mode() -> None:
    with forward_ad.dual_level():
        within = internals.in_forward_mode()
    check(within and not internals.in_forward_mode())


def _try_symmetric() -> None:
    check(callable(torch._C._distributed_c10d._SymmetricMemory.empty_strided_p2p))
    for name in ("one_shot_all_reduce_out", "two_shot_all_reduce_out"):
        check(hasattr(torch.ops.symm_mem, name))


def _try_plain() -> None:
    class Refusing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, *_: Any) -> Any:
            raise AssertionError("it was seen")

    with internals.as_plain_tensors():
        torch.zeros(1).as_subclass(Refusing).add(1)


def _try_leaves() -> None:
    check(internals.leaves({"a": [1, (2,)]}) == [1, 2] and internals.map_leaves(str, [1, (2,)]) == ["1", ("2",)])


def _try_scaling() -> None:
    tensors = [torch.ones(2), torch.ones(3)]
    internals.scale_all_(tensors, torch.tensor(2.0))
    check(all(bool((tensor == 2).all()) for tensor in tensors))


def _try_unscale() -> None:
    held = SimpleNamespace(param_groups=[{"params": [torch.zeros(1)]}])
    held.param_groups[0]["params"][0].grad = torch.tensor([float("inf")])
    unscale: Any = torch.amp.GradScaler._unscale_grads_
    found = unscale(torch.amp.GradScaler("cpu"), held, torch.ones(1), torch.zeros(1), False)
    check(list(found.values()) == [1])


def _try_hooks() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    first.register_load_state_dict_pre_hook(lambda *_: None)
    (hook,) = first._load_state_dict_pre_hooks.values()
    check(internals.bind_hook(hook, second).module() is second)
    check({"_parameters", "_buffers", "_modules", "_forward_pre_hooks"} <= vars(first).keys())


def _try_arrived() -> None:
    tensor = torch.zeros(1)
    check(internals.arrived(tensor) is tensor)


def _try_int_mm() -> None:
    x_BK = torch.arange(32 * 16).remainder(7).view(32, 16).to(torch.int8)
    check(torch.equal(internals.int_mm(x_BK, x_BK.T), (x_BK.long() @ x_BK.T.long()).int()))


def _try_semi_structured() -> None:
    kind: Any = torch.sparse.SparseSemiStructuredTensorCUSPARSELT
    kind._load_dispatch_table()
    check(torch.ops.aten.linear in kind.SPARSE_DISPATCH)


def _try_minimizing() -> None:
    def target(at: dict[str, int]) -> float:
        check(at["a"] != 6)
        return float((at["a"] - 4) ** 2 + at["b"] + 1)

    def step(name: str, value: int, direction: int, at: dict[str, int]) -> int:
        return max(value + direction, 0)

    check(internals.minimized(target, {"a": 8, "b": 0}, {"a": 1, "b": 2}, step)["b"] == 0)
    check(internals.minimized(target, {"a": 2, "b": 1}, {"a": 2, "b": 1}, step) == {"a": 4, "b": 0})
    check(internals.minimized(target, {"a": 6, "b": 0}, {"a": 6, "b": 0}, step) == {})


INTERNALS = ON_GPUS | {
    "torch._int_mm": Internal("the format int8 has no dense product", _try_int_mm),
    "torch.sparse._triton_ops_meta.minimize": Internal("the block kernel bsr is not tuned", _try_minimizing),
    "torch.sparse.SparseSemiStructuredTensor._load_dispatch_table": Internal(
        "the rival torch_semi_structured cannot be packed", _try_semi_structured
    ),
    "torch.Tensor._version": Internal("weights that were written to behind a layer's back go unseen", _try_version),
    "torch.UntypedStorage._cdata": Internal("weights whose memory was exchanged go unseen", _try_memory),
    "torch.distributed.tensor.DTensor._local_tensor": Internal(
        "weights that fully_shard holds cannot be followed", _try_local
    ),
    "torch._compile._disable_dynamo": Internal(
        "torch.compile traces what must run as it is: packing, and the hooks around steps",
        lambda: check(internals.uncompiled(lambda: 7)() == 7),
    ),
    "torch._C._functorch": Internal("functional transforms of a layer give wrong numbers, unrefused", _try_transforms),
    "torch.autograd.forward_ad._current_level": Internal(
        "forward-mode derivatives of a layer are zero, unrefused", _try_forward_mode
    ),
    "torch._C.DisableTorchFunctionSubclass": Internal("layer.weight cannot be read as one dense matrix", _try_plain),
    "torch.utils._pytree": Internal("views of layer.weight can be written to, unrefused", _try_leaves),
    "torch._foreach_mul_": Internal("clip_grad_norm_ fails unless it is given foreach=False", _try_scaling),
    "torch.amp.GradScaler._unscale_grads_": Internal(
        "ranks that hold halves do not agree on skipping a step, and part for good", _try_unscale
    ),
    "torch._C._distributed_c10d._SymmetricMemory": Internal(
        "GPUs do not read each other's memory: of the ways to combine there is nccl alone", _try_symmetric
    ),
    "torch.distributed.ProcessGroup._allgather_base": Internal(
        "ranks that gather by NCCL or gloo do not get beyond a backward pass",
        lambda: check(callable(dist.ProcessGroup._allgather_base)),
    ),
    "torch.nn.modules.module._WrappedHook": Internal(
        "an nn.Linear with hooks on loading states cannot be replaced", _try_hooks
    ),
    "torch.distributed.distributed_c10d._get_process_group_store": Internal(
        "a call that only some ranks make hangs, unrefused",
        lambda: check(callable(dist.distributed_c10d._get_process_group_store)),
    ),
    "torch.distributed._functional_collectives.AsyncCollectiveTensor": Internal(
        "the rival dtensor_row is timed without its all-reduce", _try_arrived
    ),
}
"""By the name that torch has for it."""
