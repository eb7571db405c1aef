"""What the layer meets: inputs X, and real layers with the activations that really met them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import ClassVar

import torch
from safetensors.torch import load
from torch.nn import functional as F

from blockshock.errors import InputError
from blockshock.matrices.blocks_of_rows import generator
from blockshock.matrices.sizes import LARGEST_DRAWN, LEAST_DRAWN, MOST_FEATURES
from blockshock.matrices.weights import GeneratedWeights, TensorWeights, WeightSource, check_drawn
from blockshock.registry import Registry, check_range

RECORDED_FILE = resources.files("blockshock.matrices") / "data" / "minilm_ffn.safetensors"


class Workload:
    """Inputs for a layer, and its weights.

    Attributes:
        shapes: the (N, K) this workload comes in, or None when it fits any.
        most_tokens: the largest B it can fill, or None.
    """

    shapes: ClassVar[tuple[tuple[int, int], ...] | None] = None
    most_tokens: ClassVar[int | None] = None

    def draw(self, B: int, K: int, stream: torch.Generator) -> torch.Tensor:
        """float32 inputs (B, K) on the stream's device, from the stream alone."""
        raise NotImplementedError

    def draw_more(self, T: int, K: int, stream: torch.Generator, first: torch.Generator) -> torch.Tensor:
        """Others that meet the same layer, as ``draw`` draws them.

        Args:
            first: X's stream from its start, for what all inputs of a layer share, such as which features are large.
        """
        return self.draw(T, K, stream)

    def inputs(self, B: int, K: int, dtype: torch.dtype, device: torch.device, seed: int, N: int) -> torch.Tensor:
        """X (B, K). The same seed gives the same bits on the same device and dtype.

        Raises:
            InputError: B or K is not positive or too large, or what was drawn has another shape, or holds NaN or inf.
        """
        check_range(1, MOST_FEATURES, B=B, K=K)
        return check_drawn(self.draw(B, K, generator(device, seed, 5)), B, K, dtype, "X")

    def calibration(
        self, T: int, K: int, dtype: torch.dtype, device: torch.device, seed: int, N: int, B: int
    ) -> torch.Tensor:
        """At most T inputs (T, K) for pruners to look at; none of the B ``inputs``, on which quality is measured."""
        x_TK = self.draw_more(T, K, generator(device, seed, 8), generator(device, seed, 5))
        return check_drawn(x_TK, T, K, dtype, "calibration")

    def weights(self, N: int, K: int, dtype: torch.dtype, device: torch.device, seed: int) -> WeightSource:
        """W (N, K), handed out by rows."""
        return GeneratedWeights(N, K, dtype, device, seed)


WORKLOADS: Registry[type[Workload]] = Registry("workload")


def build_workload(spec: str) -> Workload:
    """The workload that a spec such as ``gaussian:std=0.5`` names."""
    kind, parameters = WORKLOADS.resolve(spec)
    return kind(**parameters)


def _normal(B: int, K: int, stream: torch.Generator) -> torch.Tensor:
    return torch.randn(B, K, generator=stream, device=stream.device)


@WORKLOADS.register("gaussian")
@dataclass
class Gaussian(Workload):
    """Independent normal elements."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_range(-LARGEST_DRAWN, LARGEST_DRAWN, mean=self.mean)
        check_range(LEAST_DRAWN, LARGEST_DRAWN, std=self.std)

    def draw(self, B: int, K: int, stream: torch.Generator) -> torch.Tensor:
        return _normal(B, K, stream) * self.std + self.mean


@WORKLOADS.register("uniform")
@dataclass
class Uniform(Workload):
    """Independent elements, uniform in [low, high)."""

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_range(-LARGEST_DRAWN, LARGEST_DRAWN, low=self.low, high=self.high)
        check_range(LEAST_DRAWN, 2 * LARGEST_DRAWN, **{"high - low": self.high - self.low})

    def draw(self, B: int, K: int, stream: torch.Generator) -> torch.Tensor:
        return torch.rand(B, K, generator=stream, device=stream.device) * (self.high - self.low) + self.low


@WORKLOADS.register("activation_like")
@dataclass
class ActivationLike(Workload):
    """Normal elements whose features differ in scale log-normally, clipped: activations with outlier features."""

    spread: float = 1.0
    clip: float = 6.0

    def __post_init__(self) -> None:
        check_range(0, LARGEST_DRAWN, spread=self.spread)
        check_range(LEAST_DRAWN, LARGEST_DRAWN, clip=self.clip)

    def draw(self, B: int, K: int, stream: torch.Generator) -> torch.Tensor:
        return self.draw_more(B, K, stream, stream)

    def draw_more(self, T: int, K: int, stream: torch.Generator, first: torch.Generator) -> torch.Tensor:
        scale_1K = (_normal(1, K, first) * self.spread).exp()
        return (_normal(T, K, stream) * scale_1K).clamp(-self.clip, self.clip)


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}


@WORKLOADS.register("transformer_mlp")
@dataclass
class TransformerMLP(Workload):
    """The hidden layer of a transformer's feed-forward block: what its down projection meets.

    Args:
        act: gelu, silu, relu or swiglu (silu(a)·b; Shazeer, arXiv 2002.05202, 2020).
        norm: layer-normalise the pre-activations.
    """

    act: str = "gelu"
    norm: bool = True

    def __post_init__(self) -> None:
        if self.act not in (*_ACTIVATIONS, "swiglu"):
            raise InputError(f"transformer_mlp: act is one of {', '.join(_ACTIVATIONS)}, swiglu; got {self.act!r}")

    def draw(self, B: int, K: int, stream: torch.Generator) -> torch.Tensor:
        hidden_BK = self._preactivation(B, K, stream)
        if self.act == "swiglu":
            return F.silu(hidden_BK) * self._preactivation(B, K, stream)
        return _ACTIVATIONS[self.act](hidden_BK)

    def _preactivation(self, B: int, K: int, stream: torch.Generator) -> torch.Tensor:
        hidden_BK = _normal(B, K, stream) * 1.5 + 0.3 * _normal(B, 1, stream)
        return F.layer_norm(hidden_BK, (K,)) if self.norm else hidden_BK


@WORKLOADS.register("attention_like")
@dataclass
class AttentionLike(Workload):
    """The output of causal attention over a window: mixtures of value vectors, correlated from token to token."""

    window: int = 256
    head: int = 64

    def __post_init__(self) -> None:
        check_range(1, 1 << 16, window=self.window, head=self.head)

    def draw(self, B: int, K: int, stream: torch.Generator) -> torch.Tensor:
        pieces = []
        for start in range(0, B, self.window):
            tokens = min(self.window, B - start)
            scores = _normal(tokens, self.head, stream) @ _normal(tokens, self.head, stream).T / self.head**0.5
            future = torch.ones(tokens, tokens, dtype=torch.bool, device=stream.device).triu(1)
            pieces.append(scores.masked_fill(future, float("-inf")).softmax(-1) @ _normal(tokens, K, stream))
        return torch.cat(pieces)


@WORKLOADS.register("vision_conv")
@dataclass
class VisionConv(Workload):
    """Unfolded patches of a smooth, rectified feature map, as a convolution's matrix product meets them.

    Args:
        stride: elements from one patch to the next; patches overlap.
        smooth: width of the moving average that correlates neighbours.
    """

    stride: int = 8
    smooth: int = 9

    def __post_init__(self) -> None:
        check_range(1, 1 << 16, stride=self.stride, smooth=self.smooth)

    def draw(self, B: int, K: int, stream: torch.Generator) -> torch.Tensor:
        length = (B - 1) * self.stride + K + self.smooth - 1
        signal = F.avg_pool1d(_normal(1, length, stream), self.smooth, stride=1)[0] * self.smooth**0.5
        return F.relu(signal).unfold(0, K, self.stride)[:B].contiguous()


@cache
def _recorded() -> dict[str, torch.Tensor]:
    if not RECORDED_FILE.is_file():
        raise InputError(
            f"the recorded layer is not at {RECORDED_FILE}: install blockshock again, "
            "or make it with tests/data/record_minilm.py"
        )
    return load(RECORDED_FILE.read_bytes())


@WORKLOADS.register("recorded")
@dataclass
class Recorded(Workload):
    """The feed-forward layers of all-MiniLM-L6-v2 (one block) and the activations of 512 tokens of English text.

    384 → 1536 (``up``) and 1536 → 384 (``down``), weights, biases and inputs as recorded, rounded to fp16.
    """

    shapes = ((1536, 384), (384, 1536))
    most_tokens = 512

    def _tensor(self, name: str, N: int, K: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if (N, K) not in self.shapes:
            raise InputError(f"recorded has the shapes N×K 1536x384 and 384x1536, not {N}x{K}")
        return _recorded()[f"{'up' if N > K else 'down'}.{name}"].to(device).to(dtype)  # a CPU takes longer to round

    def inputs(self, B: int, K: int, dtype: torch.dtype, device: torch.device, seed: int, N: int) -> torch.Tensor:
        if not 0 < B <= self.most_tokens:
            raise InputError(f"recorded holds {self.most_tokens} tokens: B must lie in 1 … {self.most_tokens}, got {B}")
        return self._tensor("input", N, K, dtype, device)[:B].clone()

    def calibration(
        self, T: int, K: int, dtype: torch.dtype, device: torch.device, seed: int, N: int, B: int
    ) -> torch.Tensor:
        if (first := self.most_tokens - 128) < B:
            raise InputError(f"recorded keeps its last 128 tokens for calibration: B must be at most {first}, got {B}")
        return self._tensor("input", N, K, dtype, device)[first:][:T].clone()

    def weights(self, N: int, K: int, dtype: torch.dtype, device: torch.device, seed: int) -> WeightSource:
        w_NK, bias = (self._tensor(name, N, K, dtype, device) for name in ("weight", "bias"))
        return TensorWeights(w_NK, bias, seed)
