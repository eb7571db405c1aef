"""Methods compute y = x Wᵀ over a group of ranks: each file registers one or a few."""

from blockshock.methods.axes import AXES, Axis, all_axes, axis_of
from blockshock.methods.base import METHODS, Method
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.kinds import Promise, Role, Span
from blockshock.methods.layer import Layer
from blockshock.methods.named_rows import Row, parse_row
from blockshock.methods.product import check_once, check_untangent
from blockshock.methods.specs import method_of, unsuitable

METHODS.load_package(__name__)
