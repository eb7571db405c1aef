"""One case: a method on a layer, with what it takes to build both on a rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from blockshock.errors import BlockShockError
from blockshock.kernels import build_kernel
from blockshock.machine import memory
from blockshock.matrices import Mask, WeightSource, build_mask, build_workload, check_2to4, check_complementary
from blockshock.methods import Layer, Method, Shape, WeightEstimate, method_of
from blockshock.training import Training, build_recipe

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Case:
    """A row of the result table at one point of the grid.

    Attributes:
        method, kernel, mask, workload: specs; kernel and mask are None where the method does not pick one.
        N, K, B: out-features, in-features, rows of X.
        dtype: a name in DTYPES.
        seed: of weights, inputs and masks.
        keep_full_weight: also hold all of W on every rank, as a naive implementation does.
        optimizer: spec; None where nothing is trained.
        storage: spec of how a half is stored in training; None where the method does not pick one.
    """

    method: str
    kernel: str | None
    mask: str | None
    workload: str
    N: int
    K: int
    B: int
    dtype: str
    seed: int = 0
    keep_full_weight: bool = False
    optimizer: str | None = None
    storage: str | None = None

    @property
    def id(self) -> str:
        """Stable from run to run: ``block_shock-cusparselt-1100-gaussian-N8192-K8192-B64-bf16``."""
        picks = [self.method, self.kernel, self.mask, self.storage, self.optimizer, self.workload]
        return "-".join(pick for pick in [*picks, f"N{self.N}", f"K{self.K}", f"B{self.B}", self.dtype] if pick)

    @property
    def label(self) -> str:
        """The method with what was picked for it."""
        return " ".join(pick for pick in (self.method, self.kernel, self.mask, self.storage) if pick)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def frozen(self) -> Case:
        """The same without training."""
        return replace(self, optimizer=None, storage=None)

    @property
    def training(self) -> Training | None:
        """How the weights are trained. Dense halves have no kept values to store: they are masked."""
        return None if self.optimizer is None else Training(self.storage or "masked")

    def shape(self, ranks: int, backward: bool = False, mask: Mask | None = None) -> Shape:
        """What a memory estimate of this case goes by; without its mask, the most."""
        _, parameters = method_of(self.method)
        return Shape(self.N, self.K, self.torch_dtype.itemsize, ranks, backward, self.training, parameters, mask)

    def check(self, ranks: int) -> None:
        """Raises InputError if the method cannot lay out this layer over so many ranks."""
        method_of(self.method)[0].check(self.shape(ranks))

    def estimate(self, ranks: int, backward: bool = False, mask: Mask | None = None) -> WeightEstimate:
        """Weight bytes a rank holds, by arithmetic; without the mask, and of the kernel ``auto``, the most."""
        found = method_of(self.method)[0].estimate(self.shape(ranks, backward, mask), self.kernel or "auto")
        full = self.N * self.K * self.torch_dtype.itemsize if self.keep_full_weight else 0
        return replace(found, steady=found.steady + full, building=found.building + full)


@dataclass
class Built:
    """A case on this rank: the method, its input, what building it took, and by arithmetic should hold."""

    method: Method
    source: WeightSource
    x_BK: torch.Tensor
    building_bytes: int
    estimate: WeightEstimate
    group: dist.ProcessGroup


def this_device() -> torch.device:
    """The device that this rank is bound to."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def build(case: Case, backward: bool = False) -> Built:
    """Build the method, with weights frozen unless the case trains them, and draw its input on this rank."""
    device, group = this_device(), dist.group.WORLD
    assert group is not None
    workload = build_workload(case.workload)
    source = workload.weights(case.N, case.K, case.torch_dtype, device, case.seed)
    x_BK = workload.inputs(case.B, case.K, case.torch_dtype, device, case.seed, case.N)
    mask = None if case.mask is None else build_mask(case.mask, source)
    if mask is not None:
        check_2to4(mask)
        check_complementary(mask, mask.complement())
    layer = Layer(source, mask, case.kernel or "auto", case.B, backward, case.training)
    with memory.peak_bytes(device) as peak:
        kind, parameters = method_of(case.method)
        method = kind(layer, group, **parameters).requires_grad_(case.training is not None)
        if case.keep_full_weight:
            method.register_buffer("full_weight_NK", source.gather(slice(None)))
    estimate = replace(case, kernel=method.kernel).estimate(group.size(), backward, mask)
    return Built(method, source, x_BK, peak[0], estimate, group)


def obstacle(case: Case, backward: bool = False, builds: int = 1) -> str | None:
    """None if this rank can run the case, else one sentence that says why not. Allocates nothing of size.

    Args:
        builds: how many are held at once.
    """
    device, ranks = this_device(), dist.get_world_size()
    try:
        case.check(ranks)
        mask = _mask(case, device)
        reason = _kernel_obstacle(case, device, mask)
    except BlockShockError as error:
        reason = f"{case.method}: {error}"
    if reason:
        return reason
    ranks_here = 1 if device.type == "cuda" else ranks
    needed = estimate_bytes(case, ranks, backward, builds, mask) * ranks_here
    free = memory.free_bytes(device)
    if needed > free:
        return (
            f"needs about {memory.gib(needed)} on {device}, {memory.gib(free)} are free: "
            "lower --N or --B, or add ranks with --ranks"
        )
    return None


def _mask(case: Case, device: torch.device) -> Mask | None:
    if case.mask is None:
        return None
    source = build_workload(case.workload).weights(case.N, case.K, case.torch_dtype, device, case.seed)
    return build_mask(case.mask, source)


def _kernel_obstacle(case: Case, device: torch.device, mask: Mask | None) -> str | None:
    if case.kernel is None:
        return None
    kernel = build_kernel(case.kernel)
    reason = kernel.unavailable(device, case.torch_dtype) or kernel.unsuitable(case.N, case.K, case.torch_dtype, mask)
    return reason and f"kernel {case.kernel}: {reason}"


def estimate_bytes(case: Case, ranks: int, backward: bool = False, builds: int = 1, mask: Mask | None = None) -> int:
    """Bytes a rank holds at most: weights while building, X, a few outputs, float64 blocks of the reference."""
    shape, estimate = case.shape(ranks, backward, mask), case.estimate(ranks, backward, mask)
    weights = estimate.building + update_bytes(case, estimate)
    activations = case.B * (2 * case.K + 4 * case.N) * shape.itemsize + case.B * case.K * 16
    activations *= 3 if backward else 1
    reference = 2 << 30 if shape.N * shape.K * 8 > 1 << 30 else 4 * shape.N * shape.K * 8
    return builds * (weights + activations) + reference


def update_bytes(case: Case, estimate: WeightEstimate) -> int:
    """Bytes of the gradients and of the optimizer's state of the weights that are trained."""
    if case.optimizer is None or case.training is None:
        return 0
    size = case.training.parameter_bytes(case.torch_dtype.itemsize)
    return estimate.trained * size * (1 + build_recipe(case.optimizer).states)
