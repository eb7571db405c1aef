"""CUDA sources of ours, compiled when they are first needed by the NVRTC that torch has with it, and kept on disk.

What is kept is named after all that decides what comes out: the source with its definitions, the GPU's compute
capability, the versions of torch and CUDA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress

import torch

from blockshock.machine import torch_internals
from blockshock.machine.cache_folder import cache_folder
from blockshock.machine.cuda_kernel import CudaKernel
from blockshock.saved import write_whole

_DIGEST_BYTES = hashlib.sha256().digest_size


def compiled(
    source: str,
    name: str,
    definitions: Mapping[str, object] | None = None,
    shared_bytes: int = 0,
    of_its_own: bool = False,
) -> CudaKernel:
    """The kernel of that name, ``extern "C"`` in the source, for the current GPU, into whose context it is loaded.

    Args:
        definitions: macros, by name.
        shared_bytes: of dynamic shared memory that it will be launched with.
        of_its_own: it has instructions of the GPU's own compute capability, which later ones lack (``sm_90a``).
    """
    header = "".join(f"#define {macro} {value}\n" for macro, value in (definitions or {}).items())
    kernel = torch_internals.load_cubin(_binary(header + source, name, of_its_own), name)
    if shared_bytes:
        kernel.set_shared_memory_config(shared_bytes)
    return kernel


def _binary(source: str, name: str, of_its_own: bool) -> bytes:
    """Machine code for the current GPU: from disk where it is there whole, else compiled, and kept if that can be."""
    capability = "{}{}".format(*torch.cuda.get_device_capability()) + "a" * of_its_own
    decides = "\n".join([torch.__version__, str(torch.version.cuda), capability, name, source])
    path = cache_folder() / "kernels" / f"{name}-{hashlib.sha256(decides.encode()).hexdigest()[:32]}.cubin"
    with suppress(OSError):
        stored = path.read_bytes()
        digest, binary = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if hashlib.sha256(binary).digest() == digest:
            return binary
    binary = torch_internals.compile_cuda(source, name, capability)
    with suppress(OSError):  # an unwritable folder is no error
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, hashlib.sha256(binary).digest() + binary)  # ranks compile side by side
    return binary
