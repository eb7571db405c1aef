"""Methods compute y = x Wᵀ over a group of ranks: each file registers one or a few."""

from blockshock.methods.base import METHODS, Layer, Method, method_of
from blockshock.methods.estimate import Shape, WeightEstimate

METHODS.load_package(__name__)

__all__ = ["METHODS", "Layer", "Method", "Shape", "WeightEstimate", "method_of"]
