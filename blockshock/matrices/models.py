"""Public models by the shapes of their linear layers, so that a layer can be asked for by the name of its model.

Those of the blocks: embeddings, heads and convolutions are left out, for nobody prunes them with the rest. One layer is
one matrix that the model multiplies by: q, k and v are three where its code keeps three, and one where it keeps one.
"""

from __future__ import annotations

from dataclasses import dataclass

from blockshock.registry import Registry


@dataclass(frozen=True)
class Linear:
    """A linear layer y = x Wᵀ of a model.

    Attributes:
        name: as the model's code has it.
        N, K: out-features, in-features.
        count: how many the model has.
    """

    name: str
    N: int
    K: int
    count: int


@dataclass(frozen=True)
class Model:
    """The linear layers of a model's blocks.

    Attributes:
        source: where the shapes are from.
    """

    source: str
    layers: tuple[Linear, ...]


MODELS: Registry[Model] = Registry("model")


def _llama(source: str, blocks: int, width: int, inner: int, keys: int) -> Model:
    """Attention with fewer keys than queries, and a gated feed-forward part.

    Args:
        keys: out-features of the keys, and of the values.
    """
    shapes = {"q_proj": (width, width), "k_proj": (keys, width), "v_proj": (keys, width), "o_proj": (width, width)}
    shapes |= {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    return Model(source, tuple(Linear(name, N, K, blocks) for name, (N, K) in shapes.items()))


MODELS.register("llama3-8b")(
    _llama("arXiv 2407.21783, table 3; config.json of meta-llama/Meta-Llama-3-8B", 32, 4096, 14336, 1024)
)
MODELS.register("llama3-70b")(
    _llama("arXiv 2407.21783, table 3; config.json of meta-llama/Meta-Llama-3-70B", 80, 8192, 28672, 1024)
)
MODELS.register("vit-l")(
    Model(
        "arXiv 2010.11929, table 1; config.json of google/vit-large-patch16-224",
        (
            *(Linear(f"attention.{name}", 1024, 1024, 24) for name in ("query", "key", "value", "output.dense")),
            Linear("intermediate.dense", 4096, 1024, 24),
            Linear("output.dense", 1024, 4096, 24),
        ),
    )
)
MODELS.register("gpt2-xl")(
    Model(
        "Radford et al., Language Models are Unsupervised Multitask Learners, 2019, table 2; config.json of "
        "openai-community/gpt2-xl",
        (
            Linear("attn.c_attn", 4800, 1600, 48),  # q, k and v in one
            Linear("attn.c_proj", 1600, 1600, 48),
            Linear("mlp.c_fc", 6400, 1600, 48),
            Linear("mlp.c_proj", 1600, 6400, 48),
        ),
    )
)
