"""How ranks make one output of their parts: each file registers one or a few ways."""

from blockshock.machine.combines.auto import candidates, unsuitable
from blockshock.machine.combines.base import (
    COMBINES,
    Combine,
    Part,
    Peers,
    Place,
    build_combine,
    combine_of,
    side_by_side,
)
from blockshock.machine.combines.traced import traced_gather, traced_sum
from blockshock.machine.combines.workspace import most_elements

COMBINES.load_package(__name__)
