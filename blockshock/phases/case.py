"""One case: a row of the result table at a point, with what it takes to build it on a rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.distributed as dist

from blockshock.errors import BlockShockError
from blockshock.machine import combine_of, memory, most_elements
from blockshock.matrices import WeightSource, build_workload
from blockshock.methods import Layer, Method, Shape, Span, WeightEstimate, axis_of, method_of, unsuitable
from blockshock.pruning import CALIBRATION_TOKENS
from blockshock.training import Training, optimizer_of

MOST_HELD = 3
"""Builds of a case at a time: those of a pair."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Case:
    """A row of the result table at one point of the grid.

    Attributes:
        method: spec.
        picks: what was picked for it, a spec by the name of its axis, in the order of the method's ``axes``; with the
            method it is the row. Not to be written to.
        workload: spec.
        N, K, B: out-features, in-features, rows of X.
        dtype: a name in DTYPES.
        seed: of weights, inputs and masks.
        keep_full_weight: also hold all of W on every rank, as a naive implementation does.
        optimizer: spec; None where nothing is trained.
    """

    method: str
    picks: Mapping[str, str] = field(hash=False)
    workload: str
    N: int
    K: int
    B: int
    dtype: str
    seed: int = 0
    keep_full_weight: bool = False
    optimizer: str | None = None

    @property
    def id(self) -> str:
        """Stable from run to run: ``block_shock-cusparselt-1100-gaussian-N8192-K8192-B64-bf16``."""
        trained = [] if self.optimizer is None else [self.optimizer]
        return "-".join([self.method, *self.picks.values(), *trained, self.point])

    @property
    def point(self) -> str:
        """What rows that are compared share, but for the optimizer and the seed."""
        return "-".join([self.workload, f"N{self.N}", f"K{self.K}", f"B{self.B}", self.dtype])

    @property
    def place(self) -> list[str]:
        """The same in words, for the name of a group of the comparison."""
        point = [self.workload, f"N={self.N}", f"K={self.K}", f"B={self.B}", self.dtype]
        return [*point, *filter(None, [self.optimizer])]

    @property
    def label(self) -> str:
        """The method with what was picked for it."""
        return " ".join([self.method, *self.picks.values()])

    @property
    def span(self) -> Span:
        """What the method runs on."""
        return method_of(self.method)[0].span

    def pick(self, axis: str) -> str | None:
        """The spec that was picked of that axis; None where none was."""
        return self.picks.get(axis)

    def picking(self, **picks: str | None) -> Case:
        """The same with other picks, or with None without them."""
        changed = {**self.picks, **picks}
        return replace(self, picks={axis: spec for axis, spec in changed.items() if spec is not None})

    def of(self, method: str, axes: Iterable[str] = ()) -> Case:
        """The same point for another method, with those of the picks that are of these axes."""
        return replace(self, method=method, picks={axis: self.picks[axis] for axis in axes if axis in self.picks})

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def frozen(self) -> Case:
        """The same without training."""
        picks = {axis: spec for axis, spec in self.picks.items() if not axis_of(axis).trained_only}
        return replace(self, optimizer=None, picks=picks)

    @property
    def training(self) -> Training | None:
        """How the weights are trained."""
        return None if self.optimizer is None else Training()

    def layer(self, device: torch.device, backward: bool = False) -> Layer:
        """What the method is given on a device."""
        workload, size = build_workload(self.workload), (self.K, self.torch_dtype, device, self.seed)
        inputs = partial(workload.calibration, CALIBRATION_TOKENS, *size, self.N, self.B)
        ranks = dist.get_world_size() if dist.is_initialized() else None
        return Layer(workload.weights(self.N, *size), self.picks, self.B, backward, self.training, inputs, ranks)

    def inputs(self, device: torch.device) -> torch.Tensor:
        """X (B, K) on a device."""
        inputs = build_workload(self.workload).inputs
        return inputs(self.B, self.K, self.torch_dtype, device, self.seed, self.N)

    def reference(self, device: torch.device) -> WeightSource:
        """What its output is right for on so many ranks as there are: W, or the method's own W′."""
        return method_of(self.method)[0].multiplied(self.layer(device), dist.get_world_size())

    def shape(self, ranks: int, backward: bool = False, layer: Layer | None = None) -> Shape:
        """What a memory estimate of this case goes by; without its layer, the most."""
        parameters, itemsize = method_of(self.method)[1], self.torch_dtype.itemsize
        mask = None if layer is None else layer.kept
        return Shape(self.N, self.K, itemsize, ranks, backward, self.training, parameters, mask, self.picks)

    def check(self, ranks: int) -> None:
        """Raises InputError if the method cannot lay out this layer over so many ranks."""
        method_of(self.method)[0].check(self.shape(ranks))

    def estimate(self, ranks: int, backward: bool = False, layer: Layer | None = None) -> WeightEstimate:
        """Weight bytes a rank holds, by arithmetic; without the layer, and of the kernel ``auto``, the most."""
        found = method_of(self.method)[0].estimate(self.shape(ranks, backward, layer))
        full = self.N * self.K * self.torch_dtype.itemsize if self.keep_full_weight else 0
        return replace(found, steady=found.steady + full, building=found.building + full)


@dataclass
class Built:
    """A case on this rank: the method, its input, what building it took, and by arithmetic should hold."""

    method: Method
    layer: Layer
    x_BK: torch.Tensor
    building_bytes: int
    estimate: WeightEstimate
    group: dist.ProcessGroup

    @property
    def source(self) -> WeightSource:
        """W."""
        return self.layer.source

    def reference(self) -> WeightSource:
        """What the output is right for: W, or the method's own W′, made anew."""
        return self.method.multiplied(self.layer, self.group.size())

    def met_BK(self) -> torch.Tensor:
        """What of x that is multiplied by."""
        return self.method.met(self.layer, self.x_BK, self.group.size())


def this_device() -> torch.device:
    """The device that this rank is bound to."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def build(case: Case, backward: bool = False, layer: Layer | None = None) -> Built:
    """Build the method, with weights frozen unless the case trains them, and draw its input on this rank.

    Args:
        layer: of an earlier build of a frozen case, in the same direction; what was chosen for that is not chosen anew.
    """
    device, group = this_device(), dist.group.WORLD
    assert group is not None
    layer, (kind, parameters) = layer or case.layer(device, backward), method_of(case.method)
    x_BK = case.inputs(device)
    layer.source.remember(beside=estimate_bytes(case, group.size(), backward, MOST_HELD, layer))
    kind.check_layer(layer)
    with memory.peak_bytes(device) as peak:
        method = kind(layer, group, **parameters).requires_grad_(case.training is not None)
        if case.keep_full_weight:
            method.register_buffer("full_weight_NK", layer.source.gather(slice(None)))
    estimate = case.picking(**method.resolved).estimate(group.size(), backward, layer)
    return Built(method, layer, x_BK, peak[0], estimate, group)


def obstacle(case: Case, backward: bool = False, builds: int = 1) -> str | None:
    """None if this rank can run the case, else one sentence that says why not. Allocates nothing of size.

    Args:
        builds: how many are held at once.
    """
    device, ranks = this_device(), dist.get_world_size()
    try:
        case.check(ranks)
        layer = case.layer(device, backward)
        reason = unavailable(case, device, layer.both_ways) or unsuitable(case.method, layer)
    except BlockShockError as error:
        reason = f"{case.method}: {error}"
    if reason:
        return reason
    ranks_here = 1 if device.type == "cuda" else ranks
    needed = estimate_bytes(case, ranks, backward, builds, layer) * ranks_here
    free = memory.free_bytes(device, enough=needed)
    if needed > free:
        return (
            f"needs about {memory.gib(needed)} on {device}, {memory.gib(free)} are free: "
            "lower --N or --B, or add ranks with --ranks"
        )
    return None


def unavailable(case: Case, device: torch.device, differentiated: bool) -> str | None:
    """None, or why its method, or what was picked for it, cannot run on a device."""
    if reason := method_of(case.method)[0].unavailable(device, case.torch_dtype, differentiated):
        return f"{case.method}: {reason}"
    for name, spec in case.picks.items():
        if reason := axis_of(name).unavailable(spec, device, case.torch_dtype):
            return f"{name} {spec}: {reason}"
    return None


def estimate_bytes(case: Case, ranks: int, backward: bool = False, builds: int = 1, layer: Layer | None = None) -> int:
    """Bytes a rank holds at most: weights while building, X, a few outputs, float64 blocks of the reference."""
    shape, estimate = case.shape(ranks, backward, layer), case.estimate(ranks, backward, layer)
    weights = estimate.building + update_bytes(case, estimate)
    activations = case.B * (2 * case.K + 4 * case.N) * shape.itemsize + case.B * case.K * 16
    activations *= 3 if backward else 1
    reference = 2 << 30 if shape.N * shape.K * 8 > 1 << 30 else 4 * shape.N * shape.K * 8
    return builds * (weights + activations) + _shared_bytes(case, shape.itemsize, backward, ranks) + reference


def _shared_bytes(case: Case, itemsize: int, backward: bool, ranks: int) -> int:
    """Bytes that ranks read of each other."""
    spec = case.pick("combine")
    if spec is None or ranks == 1:
        return 0
    width = max(case.N, case.K) if backward or case.optimizer else case.N
    return combine_of(spec)[0].held_bytes(most_elements(case.B, width) * itemsize, ranks)


def update_bytes(case: Case, estimate: WeightEstimate) -> int:
    """Bytes of the gradients and of the optimizer's state of the weights that are trained."""
    if case.optimizer is None or case.training is None:
        return 0
    size = case.training.parameter_bytes(case.torch_dtype.itemsize)
    return estimate.trained * size * (1 + optimizer_of(case.optimizer).states)
