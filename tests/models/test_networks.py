"""Whole networks: their layers are those that --layers knows, and they compute what they are said to."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blockshock.errors import InputError, UnknownName
from blockshock.matrices import MODELS
from blockshock.models import NETWORKS, build_network, compress, likeness
from blockshock.models.likeness import spearman
from blockshock.models.rotary import turned

CPU = torch.device("cpu")
SMALL = (
    "vit_b:blocks=2:width=64",
    "llama3-8b:blocks=2:width=64:context=6",
    "llama3-8b-decode:blocks=2:width=64:context=6",
)


def linears(spec: str) -> dict[str, tuple[int, int]]:
    """Shapes of what rows may replace, by name."""
    network = build_network(spec)
    with torch.device("meta"):
        model = network.skeleton()
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear) and network.is_meant(name, "blocks")
    }


@pytest.mark.parametrize(("spec", "model"), [("llama3-8b:blocks=32:head=yes", "llama3-8b"), ("vit_l", "vit-l")])
def test_the_layers_are_those_that_the_model_of_that_name_is_said_to_have(spec: str, model: str) -> None:
    told = sorted((layer.N, layer.K) for layer in MODELS.get(model).layers for _ in range(layer.count))
    assert sorted(linears(spec).values()) == told


def test_vit_b_and_minilm_have_the_layers_of_their_papers() -> None:
    assert sorted(linears("vit_b").values()) == sorted(12 * [*4 * [(768, 768)], (3072, 768), (768, 3072)])
    assert sorted(linears("minilm").values()) == sorted(6 * [*4 * [(384, 384)], (1536, 384), (384, 1536)])


@pytest.mark.parametrize("spec", ["minilm", "vit_b", "llama3-8b"])
def test_mlps_are_a_part_of_all(spec: str) -> None:
    network, names = build_network(spec), linears(spec)
    mlps = [name for name in names if network.is_meant(name, "mlp")]
    assert len(mlps) == {"minilm": 12, "vit_b": 24, "llama3-8b": 3}[spec]


@pytest.mark.parametrize("spec", SMALL)
def test_any_row_takes_the_place_of_its_layers(spec: str) -> None:
    network = build_network(spec)
    model, call = network.build(torch.float32, CPU, 0), network.call(3, torch.float32, CPU, 0)
    with torch.inference_mode():
        dense = model(*call)
        calibration = network.calibration(torch.float32, CPU, 0)
        for row, same in (("dense_single", True), ("pruned-reference-sparsegpt", False)):
            meant = lambda name, linear: network.is_meant(name, "blocks")  # noqa: E731
            found = compress(model, row, calibration, meant, frozen=True)
            assert set(found.replaced) == set(linears(spec))
            y = model(*call)
            assert torch.isfinite(y).all()
            assert torch.allclose(y, dense, rtol=1e-4, atol=1e-5) == same
            model = network.build(torch.float32, CPU, 0)


@pytest.mark.parametrize("spec", [SMALL[0], SMALL[2]])
@pytest.mark.parametrize("row", ["pruned-gathered-1100", "pruned-reference-magnitude"])
def test_with_rows_in_it_a_network_compiles_as_one_graph(spec: str, row: str) -> None:
    network = build_network(spec)
    with torch.inference_mode():
        model, call = network.build(torch.float32, CPU, 0), network.call(2, torch.float32, CPU, 0)
        compress(model, row, where=lambda name, linear: network.is_meant(name, "blocks"), frozen=True)
        compiled = torch.compile(model, dynamic=False, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*call), model(*call))
    torch.compiler.reset()


def test_weights_are_drawn_from_the_seed() -> None:
    network = build_network(SMALL[0])
    one, again, other = (network.build(torch.float32, CPU, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert (one["norm.weight"] == 1).all()
    assert not one["norm.bias"].any()


def test_a_decoded_token_is_the_last_of_a_prompt() -> None:
    """With the keys and values of the tokens before it in the cache, a block gives what it gives for the whole."""
    prefill, decode = (build_network(f"{name}:width=64:context=6") for name in ("llama3-8b", "llama3-8b-decode"))
    whole, stepped = prefill.build(torch.float64, CPU, 0), decode.build(torch.float64, CPU, 0)
    x_BTD = torch.randn(2, 6, 64, dtype=torch.float64)
    held: list[torch.Tensor] = []
    scaled = F.scaled_dot_product_attention

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: object) -> torch.Tensor:
        held.extend((k, v))
        return scaled(q, k, v, **how)  # type: ignore[arg-type]

    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention)
        right = whole(x_BTD)
        cache = tuple(tensor.clone() for tensor in held[:2])
        for tensor in cache:
            tensor[:, :, -1] = torch.nan
        found = stepped(x_BTD[:, -1:], [cache])
    torch.testing.assert_close(found, right[:, -1:])


def test_positions_are_relative() -> None:
    """Of rotary positions: what two tokens say to each other depends on how far apart they are."""
    model = build_network("llama3-8b:width=64:context=8").build(torch.float64, CPU, 0)
    turns_2Td = model._turns(torch.empty(1, 8, 64, dtype=torch.float64))
    stream = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 2, dtype=torch.float64, generator=stream) for _ in range(2))
    turned_q, turned_k = (turned(x.expand(1, 1, 8, 2), turns_2Td) for x in (q, k))
    scores = (turned_q @ turned_k.transpose(-1, -2))[0, 0]
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1], rtol=1e-4, atol=1e-5)  # angles are of float32


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("minilmm", UnknownName, "Did you mean 'minilm'"),
        ("vit_b:width=100", InputError, "width must be a multiple of 64, got width=100; the nearest are 64 and 128"),
        ("vit_b:blocks=0", InputError, "blocks must lie in 1"),
        ("llama3-8b:width=32", InputError, "the nearest are 64 and 128"),
        ("llama3-8b:context=0", InputError, "context must lie in 1"),
        ("llama3-8b:heads=3", InputError, "takes blocks, width, context, head"),
    ],
)
def test_what_is_no_network_is_refused(spec: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        build_network(spec)


def test_a_block_of_full_width_is_for_a_gpu() -> None:
    assert "llama3-8b:width=256" in (build_network("llama3-8b").unavailable(CPU) or "")
    assert build_network("llama3-8b:width=256").unavailable(CPU) is None
    assert build_network("llama3-8b").unavailable(torch.device("cuda")) is None


@pytest.mark.parametrize("name", NETWORKS.names())
def test_every_network_says_its_batches_and_feed_forward_layers(name: str) -> None:
    kind = NETWORKS.get(name)
    assert kind.batches.keys() == {"cpu", "cuda"}
    assert kind.mlp


# Likeness -------------------------------------------------------------------------------------------------------------


def test_spearman_is_the_correlation_of_ranks() -> None:
    a, b = torch.tensor([1.0, 5, 2, 8, 3]), torch.tensor([1.0, 60, 2, 70, 30])
    assert spearman(a, b) == pytest.approx(1)
    assert spearman(a, -b) == pytest.approx(-1)
    assert spearman(torch.tensor([1.0, 2, 2, 3]), torch.tensor([1.0, 2, 3, 4])) == pytest.approx(0.9486832980505138)
    assert spearman(a, torch.tensor([1.0, 2, 3, 4, float("nan")])) != spearman(a, a)


def test_likeness_of_equal_of_other_and_of_broken_embeddings() -> None:
    e_BD = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    assert likeness(e_BD, 3 * e_BD) == pytest.approx({"cosine": 1, "least_cosine": 1, "spearman": 1})
    turned = likeness(-e_BD, e_BD)
    assert turned == pytest.approx({"cosine": -1, "least_cosine": -1, "spearman": 1}), "similarities stay"
    broken = e_BD.clone()
    broken[3] = torch.nan
    assert all(value != value for value in likeness(broken, e_BD).values())
