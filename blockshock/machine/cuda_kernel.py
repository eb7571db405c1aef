"""A kernel in machine code, launched in few steps of Python: where tokens are few, those take longer than the GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import Structure, addressof, byref, c_byte, c_int, c_uint, c_void_p
from typing import Any

import torch


class _Attribute(Structure):
    """Of a launch (``CUlaunchAttribute``): a number, and its value, of 64 bytes."""

    _fields_ = (("id", c_int), ("padding", c_int), ("value", c_int), ("rest", c_byte * 60))


class _Launch(Structure):
    """All of a launch but its arguments (``CUlaunchConfig``)."""

    _fields_ = (
        *((f"{what}_{axis}", c_uint) for what in ("grid", "block") for axis in "xyz"),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),
        ("attributes", c_void_p),
        ("count", c_uint),
    )


_BEFORE_THE_LAST_ENDS = _Attribute(6, 0, 1)
"""``CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION``, allowed."""

_CAPTURES_THESE_SINCE = 12040
"""The CUDA version of a driver, of which 12.3 was the first to."""


def early_launch_of(driver: Any) -> Callable[..., int] | None:
    """A driver's ``cuLaunchKernelEx``, or None of one that would capture no early launch."""
    version = c_int()
    driver.cuDriverGetVersion(byref(version))
    return driver.cuLaunchKernelEx if version.value >= _CAPTURES_THESE_SINCE else None  # type: ignore[no-any-return]


class CudaKernel:
    """A kernel on the GPU that was current when it was loaded. That must be the current one when it is launched too.

    Args:
        loaded: the kernel as torch has it, which keeps it; its own call looks for CUDA's library each time.
        launch: ``cuLaunchKernel``.
        check: raises RuntimeError for what that returns, unless it is 0.
        stream_address: of the current stream of a GPU.
        launch_early: as of ``early_launch_of``; without it no launch is early.
    """

    def __init__(
        self,
        loaded: Any,
        launch: Callable[..., int],
        check: Callable[[int], None],
        stream_address: Callable[[int], int],
        launch_early: Callable[..., int] | None = None,
    ) -> None:
        self._loaded, self._launch, self._check = loaded, launch, check
        self._stream_address, self._launch_early = stream_address, launch_early

    def set_shared_memory_config(self, shared_bytes: int) -> None:
        """So many bytes of dynamic shared memory it will be launched with at most."""
        self._loaded.set_shared_memory_config(shared_bytes)

    def __call__(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[torch.Tensor | int],
        shared_mem: int = 0,
        early: bool = False,
    ) -> None:
        """Launch it on the current stream.

        Args:
            args: tensors by their addresses, and whole numbers of 32 bits.
            early: it may begin once all blocks of the kernel before it on the stream let it (PTX ISA,
                ``griddepcontrol``), and waits itself for what that writes. For compute capability 9.0 and up.
        """
        # The memory that they are read from is this launch's own, for threads launch side by side.
        held = [c_void_p(arg.data_ptr()) if isinstance(arg, torch.Tensor) else c_int(arg) for arg in args]
        places = (c_void_p * len(held))(*map(addressof, held))
        stream = c_void_p(self._stream_address(torch.cuda.current_device()))
        if early and self._launch_early is not None:
            sizes = (*grid, *block, shared_mem)
            launch = _Launch(*sizes, stream, addressof(_BEFORE_THE_LAST_ENDS), 1)
            self._check(self._launch_early(byref(launch), self._loaded.func, places, None))
            return
        self._check(self._launch(self._loaded.func, *grid, *block, shared_mem, stream, places, None))
