"""What every rank runs, phase by phase, and the hypotheses that are judged by it."""

from blockshock.phases import (
    ceilings,
    compare,
    correctness,
    curves,
    ffn,
    ffn_check,
    ffn_step,
    network,
    network_pairs,
    profile,
)
from blockshock.phases.builds import BLOCK_SHARE, BLOCKS, BUILDS
from blockshock.phases.case import DTYPES, Case, obstacle
from blockshock.phases.claims import Claim, claims, compresses_every_time, ffn_claims, network_claims
from blockshock.phases.curves import CurveCase, CurvesResult, curve_case
from blockshock.phases.drift import DriftResult
from blockshock.phases.ffn import FFNCase, act_of, ffn_case
from blockshock.phases.ffn_check import FFNCheck
from blockshock.phases.forward import TimingResult
from blockshock.phases.hypotheses import alternatives
from blockshock.phases.learning import LearningResult
from blockshock.phases.network import NetworkResult
from blockshock.phases.networks import NetworkCase, network_case
from blockshock.phases.profile import KernelTime
from blockshock.phases.train import TrainingResult
from blockshock.phases.trajectory import TrajectoryResult
