"""A kernel in machine code, launched in few steps of Python: where tokens are few, those take longer than the GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import addressof, c_int, c_void_p
from typing import Any

import torch


class CudaKernel:
    """A kernel on the GPU that was current when it was loaded. That must be the current one when it is launched too.

    Args:
        loaded: the kernel as torch has it, which keeps it; its own call looks for CUDA's library each time.
        launch: ``cuLaunchKernel``.
        check: raises RuntimeError for what that returns, unless it is 0.
    """

    def __init__(self, loaded: Any, launch: Callable[..., int], check: Callable[[int], None]) -> None:
        self._loaded, self._launch, self._check = loaded, launch, check

    def set_shared_memory_config(self, shared_bytes: int) -> None:
        """So many bytes of dynamic shared memory it will be launched with at most."""
        self._loaded.set_shared_memory_config(shared_bytes)

    def __call__(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[torch.Tensor | int],
        shared_mem: int = 0,
    ) -> None:
        """Launch it on the current stream.

        Args:
            args: tensors by their addresses, and whole numbers of 32 bits.
        """
        # The memory that they are read from is this launch's own, for threads launch side by side.
        held = [c_void_p(arg.data_ptr()) if isinstance(arg, torch.Tensor) else c_int(arg) for arg in args]
        places = (c_void_p * len(held))(*map(addressof, held))
        stream = c_void_p(torch.cuda.current_stream().cuda_stream)
        self._check(self._launch(self._loaded.func, *grid, *block, shared_mem, stream, places, None))
