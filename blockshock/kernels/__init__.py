"""Kernels multiply by one piece of W: each file registers one."""

from blockshock.kernels.base import KERNELS, Kernel, build_kernel, packed_bytes
from blockshock.kernels.block_kernels import BLOCK_KERNELS, BlockKernel, BlockLayout, build_block_kernel
from blockshock.kernels.formats import (
    FORMATS,
    FORWARD_ALONE,
    E5m2,
    Format,
    PackedDenseQuantised,
    PackedQuantised,
    QuantisedWeights,
    Stored,
    build_format,
    format_of,
    row_scales,
)
from blockshock.kernels.packed import Packed

KERNELS.load_package(__name__)

# After all are registered in the order of their files: test ids keep to that order.
from blockshock.kernels.algorithm_cache import AlgorithmCache, are_seconds, measured_on  # noqa: E402
from blockshock.kernels.auto import shape_of  # noqa: E402
from blockshock.kernels.dense import PackedDense  # noqa: E402
