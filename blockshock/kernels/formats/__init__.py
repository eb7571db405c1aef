"""Formats: how the numbers of a product are stored. Each file registers one."""

from blockshock.kernels.formats.base import FORMATS, Format, Stored, build_format, descaled, format_of
from blockshock.kernels.formats.dense import PackedDenseQuantised
from blockshock.kernels.formats.fp8_e5m2 import E5m2
from blockshock.kernels.formats.orders import TILE_ROWS, Order, steps_of
from blockshock.kernels.formats.packed import FORWARD_ALONE, PackedQuantised, quantised, row_scales
from blockshock.kernels.formats.weights import QuantisedWeights

FORMATS.load_package(__name__)
