"""Kernels multiply by one 2:4 half of W: each file registers one."""

from blockshock.kernels.base import KERNELS, Half, Kernel, Packed, build_kernel

KERNELS.load_package(__name__)

__all__ = ["KERNELS", "Half", "Kernel", "Packed", "build_kernel"]
