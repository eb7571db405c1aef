"""How fast, how right and how near a limit: timing, errors against float64, the roofline."""

from blockshock.measure import timing
from blockshock.measure.accuracy import FLOAT32, Accuracy, ErrorSums, Sums, compare
from blockshock.measure.quality import Losing, QualitySums, lost
from blockshock.measure.roofline import Ceilings, Line, NoCeiling, Operand, Work, demands, known, limit, product
from blockshock.measure.stopwatch import Stopwatch
from blockshock.measure.timing import Call, Prologue, Protocol, check_durations, warm_up
