"""torch's private parts that this package lives by, all of them: a release of torch may change any without a word.

Whoever needs one calls it through here; it is looked up then, so that one that is gone breaks nothing but what
needs it. `tried_internals` says of each what that is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import forward_ad

from blockshock.machine.bsr_kernel import (  # noqa: F401 - called through here, as all of them
    bsr_product,
    compile_bsr,
    has_bsr,
    knows_bsr,
    minimized,
)
from blockshock.machine.cuda_kernel import CudaKernel, early_launch_of

Function = TypeVar("Function", bound=Callable[..., Any])


def compress(w_NK: torch.Tensor) -> torch.Tensor:
    """A 2:4 matrix as cuSPARSELt has it; reads raw memory, so the rows must lie densely."""
    return torch._cslt_compress(w_NK)


def sparse_mm(
    packed: torch.Tensor,
    x_KB: torch.Tensor,
    bias: torch.Tensor | None,
    setting: tuple[int, int, int],
    turned: bool = True,
) -> torch.Tensor:
    """cuSPARSELt's product (B, N), or (N, B) if not ``turned``: by an algorithm, a number of parts that K is split
    into, and how these are added."""
    algorithm, split_k, mode = setting
    return torch._cslt_sparse_mm(
        packed, x_KB, bias=bias, transpose_result=turned, alg_id=algorithm, split_k=split_k, split_k_mode=mode
    )


def sparse_mm_of_bytes(
    packed: torch.Tensor,
    x_KB: torch.Tensor,
    scale_N: torch.Tensor | None,
    out: torch.dtype,
    setting: tuple[int, int, int],
) -> torch.Tensor:
    """The same in eight bits: to a dtype, each output channel times a scale of its own, float32, if these are given."""
    return torch._cslt_sparse_mm(packed, x_KB, None, scale_N, out, True, *setting)


def search(
    packed: torch.Tensor,
    x_KB: torch.Tensor,
    bias: torch.Tensor | None,
    scale_N: torch.Tensor | None = None,
    out: torch.dtype | None = None,
    turned: bool = True,
) -> Sequence[int]:
    """The setting of `sparse_mm`, or with ``out`` of `sparse_mm_of_bytes`, that cuSPARSELt finds to be fastest."""
    return list(torch._C._cusparselt.mm_search(packed, x_KB, bias, scale_N, out, turned)[:3])  # type: ignore[attr-defined]


def int_mm(x_BK: torch.Tensor, w_KN: torch.Tensor) -> torch.Tensor:
    """The exact product of two matrices of int8, int32 (B, N). On GPUs B is above 16, K and N are multiples of 8."""
    return torch._int_mm(x_BK, w_KN)


def scaled_mm(
    x_BK: torch.Tensor, w_KN: torch.Tensor, scales: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype, quick: bool
) -> torch.Tensor:
    """The product of two matrices of eight bits, one of e5m2 at the most, each row of x and each column of w times its
    scale, or all times one; added up ``quick``, or in more bits. K and N are multiples of 16, w a transposed matrix."""
    return torch._scaled_mm(x_BK, w_KN, scale_a=scales[0], scale_b=scales[1], out_dtype=dtype, use_fast_accum=quick)


def cutlass_mm(packed: torch.Tensor, meta: torch.Tensor, x_KB: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """CUTLASS's product (N, B)."""
    if bias is None:
        return torch._sparse_semi_structured_mm(packed, meta, x_KB)
    return torch._sparse_semi_structured_addmm(bias, packed, meta, x_KB)


def semi_structured(w_NK: torch.Tensor) -> torch.Tensor:
    """torch's own tensor of a 2:4 matrix, for code that is not compiled.

    The first one of a kind warns that it is a prototype, and imports the compiler to tell it of that kind: this takes
    longer than to check and time many a row. Here it does neither; for compiled code the kind is still to be told of.
    """
    sparse = importlib.import_module("torch.sparse")
    for kind in sparse.SparseSemiStructuredTensor.__subclasses__():
        if not getattr(kind, "_PROTOTYPE_WARNING_SHOWN", True):
            kind._load_dispatch_table()
            kind._PROTOTYPE_WARNING_SHOWN = True
    made: torch.Tensor = sparse.to_sparse_semi_structured(w_NK)
    return made


def compile_cuda(source: str, name: str, capability: str) -> bytes:
    """Machine code of the kernel of that name, for GPUs of that compute capability, through NVRTC."""
    return importlib.import_module("torch.cuda._utils")._nvrtc_compile(source, name, capability)[0]


def load_cubin(binary: bytes, name: str) -> CudaKernel:
    """The kernel of that name in machine code, for the current GPU."""
    utils = importlib.import_module("torch.cuda._utils")
    loaded = utils._cuda_load_module(binary, [name])[name]
    driver = utils._get_gpu_runtime_library()
    return CudaKernel(loaded, driver.cuLaunchKernel, utils._check_cuda, stream_address, early_launch_of(driver))


def stream_address(index: int) -> int:
    """Of the current stream of a GPU; the public way makes an object for it, in many times the steps."""
    return torch._C._cuda_getCurrentRawStream(index)


def peer_memory(size: int, device: torch.device, group: Any) -> tuple[torch.Tensor, Any]:
    """So many bytes on each rank of a group, and the handle by which ranks reach each other's; a block of its own.

    All bits are set: as float32 or bf16, none is a number.
    """
    memory = torch._C._distributed_c10d._SymmetricMemory.empty_strided_p2p((size,), (1,), torch.uint8, device)
    memory.fill_(0xFF)
    torch.cuda.synchronize(device)  # ranks leave the next call together
    return memory, importlib.import_module("torch.distributed._symmetric_memory").rendezvous(memory, group)


def add_up(shots: str, part: torch.Tensor, group_name: str, total: torch.Tensor) -> None:
    """The sum of all ranks' parts in memory that peers read, by that operator of torch's."""
    getattr(torch.ops.symm_mem, shots)(part, "sum", group_name, total)


def version(tensor: torch.Tensor | None) -> int:
    """How often a tensor was written to, as far as torch counts that: not of inference tensors."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def memory_of(tensor: torch.Tensor) -> int:
    """Which memory a tensor lies in: a number that no other memory has while that one lives."""
    return tensor.untyped_storage()._cdata


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """Of a DTensor this rank's part itself, unlike ``to_local()`` without a view of it."""
    return getattr(tensor, "_local_tensor", tensor)


def uncompiled(function: Function) -> Function:
    """The function, run as it is by compiled code. The public decorator imports the compiler, which costs a second."""
    return torch._compile._disable_dynamo(function)  # type: ignore[return-value]


def is_transformed(tensor: torch.Tensor) -> bool:
    """Whether a functional transform is at work, or this is a batch of gradients."""
    functorch = torch._C._functorch
    return functorch.peek_interpreter_stack() is not None or functorch.is_legacy_batchedtensor(tensor)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether nothing but ``backward()`` differentiates: what those before and after this ask, at once."""
    functorch = torch._C._functorch
    inside = functorch.peek_interpreter_stack() is not None or functorch.is_legacy_batchedtensor(tensor)
    return forward_ad._current_level < 0 and not inside


def in_forward_mode() -> bool:
    """Whether forward-mode derivatives are being computed."""
    return forward_ad._current_level >= 0


def as_plain_tensors() -> AbstractContextManager[None]:
    """Within it, no subclass of Tensor sees what is called."""
    return torch._C.DisableTorchFunctionSubclass()  # type: ignore[return-value]


def all_eager() -> AbstractContextManager[Any]:
    """Within it nothing runs that was compiled before: nothing was without the compiler, whose import takes seconds."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def leaves(tree: Any) -> list[Any]:
    """All that lists, tuples and dicts hold, however deep."""
    return torch.utils._pytree.tree_leaves(tree)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree with what the function makes of each leaf."""
    return torch.utils._pytree.tree_map(function, tree)


def scale_all_(tensors: list[torch.Tensor], factor: torch.Tensor) -> None:
    """Multiply tensors of one device and dtype in place, in few launches."""
    torch._foreach_mul_(tensors, factor)


def wrap_unscale(wrap: Callable[[Any], Any]) -> None:
    """Have every scaler look for inf by what ``wrap`` makes of torch's own method; once."""
    unscale: Any = torch.amp.GradScaler._unscale_grads_
    if not hasattr(unscale, "__wrapped__"):
        torch.amp.GradScaler._unscale_grads_ = wrap(unscale)  # type: ignore[method-assign]


def bind_hook(hook: Any, module: nn.Module) -> Any:
    """A hook on loading states, called with this module where it was to be called with another."""
    kind = nn.modules.module._WrappedHook
    return kind(hook.hook, module) if isinstance(hook, kind) and hook.with_module else hook


def store_of(group: Any) -> Any:
    """The store that the ranks of a process group met in."""
    return dist.distributed_c10d._get_process_group_store(group)


def start_gather(group: Any, stacked: torch.Tensor, shard: torch.Tensor) -> Any:
    """Work that writes all ranks' shards one below the other; torch's public function starts it in twice the time."""
    return group._allgather_base(stacked, shard)


def arrived(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, once the collective that fills it is done."""
    kind = importlib.import_module("torch.distributed._functional_collectives").AsyncCollectiveTensor
    return tensor.wait() if isinstance(tensor, kind) else tensor  # type: ignore[attr-defined, no-any-return]
