"""What breaks without each of torch's private parts, and whether it does what it did: the doctor tries all of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import forward_ad

from blockshock.machine import torch_internals as internals


@dataclass(frozen=True)
class Internal:
    """What is known of a private part.

    Attributes:
        without: what breaks where it is missing or does something else.
        attempt: uses it on something small; raises where it does not do what it did.
        device: ``cuda``: only a GPU can try it.
        lacks: why it cannot be tried on that GPU, or None.
    """

    without: str
    attempt: Callable[[], None]
    device: str = "cpu"
    lacks: Callable[[], str | None] = lambda: None


def _check(right: bool) -> None:
    if not right:
        raise AssertionError("it does not do what it did")


def _try_version() -> None:
    tensor = torch.zeros(1)
    before = internals.version(tensor)
    tensor[:].add_(1)
    _check(internals.version(tensor) > before)


def _try_memory() -> None:
    tensor = torch.zeros(2)
    _check(internals.memory_of(tensor) == internals.memory_of(tensor[1:]) != internals.memory_of(torch.zeros(2)))


def _try_local() -> None:
    _check("_local_tensor" in importlib.import_module("torch.distributed.tensor").DTensor.__slots__)


def _try_transforms() -> None:
    seen = []
    torch.func.vmap(lambda x: seen.append(internals.is_transformed(x)) or x)(torch.zeros(2))  # type: ignore[func-returns-value]
    _check(seen == [True] and not internals.is_transformed(torch.zeros(2)))


def _try_forward_mode() -> None:
    with forward_ad.dual_level():
        within = internals.in_forward_mode()
    _check(within and not internals.in_forward_mode())


def _try_symmetric() -> None:
    _check(callable(torch._C._distributed_c10d._SymmetricMemory.empty_strided_p2p))
    for name in ("one_shot_all_reduce_out", "two_shot_all_reduce_out"):
        _check(hasattr(torch.ops.symm_mem, name))


def _try_plain() -> None:
    class Refusing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, *_: Any) -> Any:
            raise AssertionError("it was seen")

    with internals.as_plain_tensors():
        torch.zeros(1).as_subclass(Refusing).add(1)


def _try_leaves() -> None:
    _check(internals.leaves({"a": [1, (2,)]}) == [1, 2] and internals.map_leaves(str, [1, (2,)]) == ["1", ("2",)])


def _try_scaling() -> None:
    tensors = [torch.ones(2), torch.ones(3)]
    internals.scale_all_(tensors, torch.tensor(2.0))
    _check(all(bool((tensor == 2).all()) for tensor in tensors))


def _try_unscale() -> None:
    held = SimpleNamespace(param_groups=[{"params": [torch.zeros(1)]}])
    held.param_groups[0]["params"][0].grad = torch.tensor([float("inf")])
    unscale: Any = torch.amp.GradScaler._unscale_grads_
    found = unscale(torch.amp.GradScaler("cpu"), held, torch.ones(1), torch.zeros(1), False)
    _check(list(found.values()) == [1])


def _try_hooks() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    first.register_load_state_dict_pre_hook(lambda *_: None)
    (hook,) = first._load_state_dict_pre_hooks.values()
    _check(internals.bind_hook(hook, second).module() is second)
    _check({"_parameters", "_buffers", "_modules", "_forward_pre_hooks"} <= vars(first).keys())


def _try_arrived() -> None:
    tensor = torch.zeros(1)
    _check(internals.arrived(tensor) is tensor)


def _matrices() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W (64, 64) whose first two of four are zeros, x (16, 64), and their product."""
    w = torch.arange(64 * 64, device="cuda").remainder(7).view(64, 64) + 1
    w = w * torch.tensor([0, 0, 1, 1], device="cuda").repeat(16)
    x = torch.arange(16 * 64, device="cuda").remainder(5).view(16, 64)
    w_NK, x_BK = w.to(torch.bfloat16), x.to(torch.bfloat16)
    return w_NK, x_BK, (x_BK.double() @ w_NK.double().T).to(torch.bfloat16)


def _try_cusparselt() -> None:
    w_NK, x_BK, y_BN = _matrices()
    _check(torch.equal(internals.sparse_mm(internals.compress(w_NK), x_BK.T, None, (0, 1, -1)), y_BN))


def _try_all_of_cusparselt() -> None:
    _try_cusparselt()
    w_NK, x_BK, y_BN = _matrices()
    w_NK, x_BK = w_NK.to(torch.int8), x_BK.to(torch.int8)
    packed, halves = internals.compress(w_NK), torch.full((64,), 0.5, device="cuda")
    _check(torch.equal(internals.sparse_mm_of_bytes(packed, x_BK.T, halves, torch.bfloat16, (0, 1, -1)), y_BN / 2))
    sums_BN = internals.sparse_mm_of_bytes(packed, x_BK.T, None, torch.int32, (0, 1, -1))
    _check(torch.equal(sums_BN.to(torch.bfloat16), y_BN))
    _check(len(internals.search(packed, x_BK.T, None, halves, torch.bfloat16)) == 3)


def _try_search() -> None:
    w_NK, x_BK, _ = _matrices()
    _check(len(internals.search(internals.compress(w_NK), x_BK.T, None)) == 3)


def _try_int_mm() -> None:
    x_BK = torch.arange(32 * 16).remainder(7).view(32, 16).to(torch.int8)
    _check(torch.equal(internals.int_mm(x_BK, x_BK.T), (x_BK.long() @ x_BK.T.long()).int()))


def _try_scaled_mm() -> None:
    w_NK, x_BK, y_BN = _matrices()
    factors = (x_BK.to(torch.float8_e4m3fn), w_NK.to(torch.float8_e4m3fn).T)
    scales = torch.full((16, 1), 0.5, device="cuda"), torch.full((1, 64), 4.0, device="cuda")
    _check(torch.equal(internals.scaled_mm(*factors, *scales, torch.bfloat16), 2 * y_BN))


def _try_cutlass() -> None:
    w_NK, x_BK, y_BN = _matrices()
    sparse = torch.sparse.SparseSemiStructuredTensorCUTLASS.from_dense(w_NK)
    assert sparse.packed is not None
    assert sparse.meta is not None
    for bias in (None, torch.zeros_like(w_NK[:, 0])):
        _check(torch.equal(internals.cutlass_mm(sparse.packed, sparse.meta, x_BK.T, bias).T, y_BN))


def _try_bsr() -> None:
    w_NK, x_BK, y_BN = _matrices()
    bsr_NK, meta = w_NK.to_sparse_bsr((16, 16)), {"GROUP_SIZE_ROW": 1, "num_stages": 1, "num_warps": 4, "SPLIT_N": 1}
    for bias in (None, torch.zeros_like(w_NK[:, 0])):
        found_BN = torch.empty_like(y_BN)
        internals.bsr_product(bsr_NK, x_BK.T, bias, found_BN.T, meta)
        _check(torch.equal(found_BN, y_BN))


def _try_minimizing() -> None:
    def target(at: dict[str, int]) -> float:
        _check(at["a"] != 6)
        return float((at["a"] - 4) ** 2 + at["b"] + 1)

    def step(name: str, value: int, direction: int, at: dict[str, int]) -> int:
        return max(value + direction, 0)

    _check(internals.minimized(target, {"a": 8, "b": 0}, {"a": 1, "b": 2}, step)["b"] == 0)
    _check(internals.minimized(target, {"a": 2, "b": 1}, {"a": 2, "b": 1}, step) == {"a": 4, "b": 0})
    _check(internals.minimized(target, {"a": 6, "b": 0}, {"a": 6, "b": 0}, step) == {})


def _try_compiling() -> None:
    out = torch.zeros(1, device="cuda")
    source = 'extern "C" __global__ void seven(float *out) { out[0] = 7; }'
    capability = "{}{}".format(*torch.cuda.get_device_capability())
    kernel = internals.load_cubin(internals.compile_cuda(source, "seven", capability), "seven")
    kernel.set_shared_memory_config(64 << 10)
    kernel(grid=(1, 1, 1), block=(1, 1, 1), args=[out], shared_mem=64 << 10)
    _check(out.item() == 7)


def _lacks_cusparselt() -> str | None:
    return None if torch.backends.cusparselt.is_available() else "torch has no cuSPARSELt here"


def _lacks_fp8() -> str | None:
    return None if torch.cuda.get_device_capability() >= (8, 9) else "this GPU has no products in fp8"


def _lacks_bsr() -> str | None:
    return None if internals.has_bsr() else "torch has no Triton kernels here"


def _lacks_cutlass() -> str | None:
    return None if torch.cuda.get_device_capability()[0] == 8 else "torch has CUTLASS 2:4 for GPUs of 8.x only"


_SEARCHED = "cuSPARSELt's algorithms are not searched, and the kernel cusparselt takes up to three times as long"
_COMPILED = (
    "the kernel streamed is not there, and masks that repeat in tiles cannot be trained on GPUs: their values are not "
    "brought into the order of Wᵀ"
)
INTERNALS = {
    "torch._cslt_compress": Internal("the kernel cusparselt cannot pack", _try_cusparselt, "cuda", _lacks_cusparselt),
    "torch._cslt_sparse_mm": Internal(
        "the kernel cusparselt cannot multiply", _try_all_of_cusparselt, "cuda", _lacks_cusparselt
    ),
    "torch._int_mm": Internal("the format int8 has no dense product", _try_int_mm),
    "torch._scaled_mm": Internal("the format fp8 has no dense product", _try_scaled_mm, "cuda", _lacks_fp8),
    "torch._C._cusparselt.mm_search": Internal(_SEARCHED, _try_search, "cuda", _lacks_cusparselt),
    "torch._sparse_semi_structured_mm": Internal(
        "the kernel cutlass cannot multiply", _try_cutlass, "cuda", _lacks_cutlass
    ),
    "torch._sparse_semi_structured_addmm": Internal(
        "the kernel cutlass cannot multiply where there is a bias", _try_cutlass, "cuda", _lacks_cutlass
    ),
    "torch.sparse._triton_ops.bsr_dense_addmm": Internal(
        "the block kernel bsr cannot multiply", _try_bsr, "cuda", _lacks_bsr
    ),
    "torch.sparse._triton_ops._bsr_strided_addmm_kernel": Internal(
        "the block kernel bsr is not there",
        lambda: _check(hasattr(importlib.import_module("torch.sparse._triton_ops"), "_bsr_strided_addmm_kernel")),
    ),
    "torch.sparse._triton_ops_meta.minimize": Internal("the block kernel bsr is not tuned", _try_minimizing),
    "torch.cuda._utils._nvrtc_compile": Internal(_COMPILED, _try_compiling, "cuda"),
    "torch.cuda._utils._cuda_load_module": Internal(_COMPILED, _try_compiling, "cuda"),
    "torch.cuda._utils._get_gpu_runtime_library": Internal(_COMPILED, _try_compiling, "cuda"),
    "torch.cuda._utils._check_cuda": Internal(_COMPILED, _try_compiling, "cuda"),
    "torch.Tensor._version": Internal("weights that were written to behind a layer's back go unseen", _try_version),
    "torch.UntypedStorage._cdata": Internal("weights whose memory was exchanged go unseen", _try_memory),
    "torch.distributed.tensor.DTensor._local_tensor": Internal(
        "weights that fully_shard holds cannot be followed", _try_local
    ),
    "torch._compile._disable_dynamo": Internal(
        "torch.compile traces what must run as it is: packing, and the hooks around steps",
        lambda: _check(internals.uncompiled(lambda: 7)() == 7),
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
    "torch.nn.modules.module._WrappedHook": Internal(
        "an nn.Linear with hooks on loading states cannot be replaced", _try_hooks
    ),
    "torch.distributed.distributed_c10d._get_process_group_store": Internal(
        "a call that only some ranks make hangs, unrefused",
        lambda: _check(callable(dist.distributed_c10d._get_process_group_store)),
    ),
    "torch.distributed._functional_collectives.AsyncCollectiveTensor": Internal(
        "the rival dtensor_row is timed without its all-reduce", _try_arrived
    ),
}
"""By the name that torch has for it."""
