"""The byte-level language model: a decoder that sees no byte to come, judged in bits per byte of text it never saw."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.models import build_network, compress, lm, text
from blockshock.models.byte_gpt import ByteGPT

sys.path.append(str(Path(__file__).parents[1] / "data"))
import train_lm

CPU = torch.device("cpu")
TINY = {"width": 64, "layers": 2, "heads": 2, "context": 64}
SIZES = [word for name, size in TINY.items() for word in (f"--{name}", str(size))]


def tiny(**other: int) -> ByteGPT:
    return ByteGPT(**(TINY | other)).draw(0)


# The model ------------------------------------------------------------------------------------------------------------


def test_the_usual_one_has_three_million_parameters_and_layers_that_kernels_take() -> None:
    with torch.device("meta"):
        usual, large = ByteGPT(), ByteGPT(width=512, layers=8, heads=8)
    assert [sum(held.numel() for held in model.parameters()) for model in (usual, large)] == [3281408, 25445376]
    linears = [module for module in usual.blocks.modules() if isinstance(module, nn.Linear)]
    shapes = [(linear.out_features, linear.in_features) for linear in linears]
    assert shapes == 4 * [(768, 256), (256, 256), (1024, 256), (256, 1024)]
    assert all(linear.bias is None for linear in linears)


def test_what_follows_a_byte_changes_nothing_before_it() -> None:
    model, bytes_BT = tiny().double(), torch.randint(256, (2, 20))
    other_BT = bytes_BT.clone()
    other_BT[:, 12:] = (other_BT[:, 12:] + 1) % 256
    with torch.inference_mode():
        first_BTV, second_BTV = model(bytes_BT), model(other_BT)
    assert first_BTV.shape == (2, 20, 256)
    torch.testing.assert_close(first_BTV[:, :12], second_BTV[:, :12])
    assert (first_BTV[:, 12:] != second_BTV[:, 12:]).any(dim=-1).all()


def test_it_computes_what_is_written_down_of_it() -> None:
    """Against a transcription in float64, position by position."""
    model, bytes_T = tiny(layers=1).double(), torch.randint(256, (7,))
    block, held = model.blocks[0], dict(model.named_parameters())
    norm = lambda x, name: nn.functional.layer_norm(x, (64,), held[f"{name}.weight"], held[f"{name}.bias"])  # noqa: E731
    with torch.inference_mode():
        x_TD = model.bytes.weight[bytes_T]
        parts = (norm(x_TD, "blocks.0.norm1") @ block.qkv.weight.T).split(64, 1)
        speeds = 10000.0 ** -(torch.arange(16) / 16)
        turn = torch.exp(1j * torch.arange(7)[:, None] * speeds)
        pairs = lambda x_Td: torch.complex(x_Td[:, :16], x_Td[:, 16:]) * turn[: len(x_Td)]  # noqa: E731
        mixed = []
        for t in range(7):
            for head in range(2):
                q, k, v = (part_TD[: t + 1, 32 * head : 32 * head + 32] for part_TD in parts)
                scores = (pairs(q)[t].conj() * pairs(k)).sum(1).real / math.sqrt(32)
                mixed.append(scores.softmax(0) @ v)
        x_TD = x_TD + torch.stack(mixed).view(7, 64) @ block.out.weight.T
        inner = norm(x_TD, "blocks.0.norm2") @ block.up.weight.T
        x_TD = x_TD + (inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))) @ block.down.weight.T
        right_TV = norm(x_TD, "norm") @ model.head.weight.T
        torch.testing.assert_close(model(bytes_T[None])[0], right_TV, rtol=1e-5, atol=1e-6)  # angles are of float32


def test_a_seed_draws_the_same_weights_and_the_loss_is_that_of_knowing_nothing() -> None:
    one, again, other = tiny().state_dict(), tiny().state_dict(), ByteGPT(**TINY).draw(1).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert one["blocks.0.down.weight"].std() == pytest.approx(0.02 / 2, rel=0.05)
    windows_WT = text.windows(text.committed_text(text.HELD_OUT)[:2000], 64)
    assert text.bits(tiny(), windows_WT).mean().item() == pytest.approx(8, abs=0.1)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"width": 100}, "width must be a multiple of 64, got width=100; the nearest are 64 and 128"),
        ({"layers": 0}, "layers must lie in 1"),
        ({"heads": 3}, "heads must divide half of the width, 32, got heads=3"),
        ({"context": 0}, "context must lie in 1"),
    ],
)
def test_sizes_that_make_no_model_are_refused(sizes: dict[str, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ByteGPT(**(TINY | sizes))


# The network ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny one, trained for seconds on what real ones are calibrated with."""
    folder = tmp_path_factory.mktemp("lm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "corpus", lambda path: text.committed_text(text.CALIBRATION))
        how = [
            "--corpus",
            "x",
            "--to",
            str(folder),
            "--device",
            "cpu",
            "--steps",
            "120",
            "--batch",
            "8",
            "--lr",
            "4e-3",
        ]
        train_lm.main([*how, *SIZES])
    torch.use_deterministic_algorithms(False)
    return folder


@pytest.fixture
def weights(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lm, "WEIGHTS", trained / "lm.safetensors")
    return trained


def test_training_learns_and_says_of_what_and_how(trained: Path) -> None:
    about = json.loads((trained / "lm.json").read_text())
    assert about["held_out_bits_per_byte"] < 4.5, "it begins with 8"
    assert about["command"].startswith("python tests/data/train_lm.py --corpus x ")
    assert "/" not in about["command"].removeprefix("python tests/data/train_lm.py"), "nobody's folders are named"
    assert about["corpus"] == text.about_texts()["files"][text.CORPUS]
    assert about["weights"] == hashlib.sha256((trained / "lm.safetensors").read_bytes()).hexdigest()
    assert (about["seed"], about["steps"], about["bytes_trained_on"]) == (0, 120, 120 * 8 * 64)
    assert about["versions"].keys() == {"python", "torch", "cuda"}
    curve = [[float(value) for value in line.split()] for line in about["curve"][1:]]
    assert [line[0] for line in curve] == list(range(6, 121, 6))
    assert curve[-1][3] < curve[0][3] - 1


def test_a_seed_trains_the_same_weights(trained: Path) -> None:
    plan = train_lm.parsed(["--corpus", "x", "--steps", "3", "--batch", "2", *SIZES])
    text_N, held_out_WT = text.committed_text(text.CALIBRATION), text.windows(text.committed_text(text.HELD_OUT), 64)
    models = [tiny(), tiny(), tiny()]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        plan.seed = seed
        train_lm.train(model, text_N, held_out_WT[:1], plan)
    one, again, other = (model.head.weight for model in models)
    assert torch.equal(one, again)
    assert not torch.equal(one, other), "another seed draws other text"


def test_rates_rise_and_fall_to_a_tenth() -> None:
    rates = [train_lm.rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 20)
    assert max(rates) == rates[19] == 1
    assert rates[-1] == pytest.approx(0.1, abs=1e-4)
    assert all(after <= before for before, after in pairwise(rates[19:]))


@pytest.mark.usefixtures("weights")
def test_what_rows_lose_is_in_bits_per_byte() -> None:
    one = build_network("lm")
    dense = one.build(torch.float32, CPU, 0)
    before = one.judged(dense, torch.float32, CPU)
    assert before.shape == (191 * 64,), "12 KiB in windows of 64 bytes and the one that follows"
    assert one.likeness(before, before) == {
        "bits_per_byte": pytest.approx(before.mean().item()),
        "added_bits_per_byte": 0,
    }
    added = {}
    for row in (
        "dense_single-int8",
        "pruned-reference-sparsegpt",
        "pruned-reference-magnitude",
        "pruned-reference-random",
    ):
        model = one.build(torch.float32, CPU, 0)
        with torch.inference_mode():
            calls = one.calibration(torch.float32, CPU, 0)
            found = compress(model, row, calls, lambda name, linear: one.is_meant(name, "blocks"), frozen=True)
            assert len(found.replaced) == 8
            added[row] = one.likeness(one.judged(model, torch.float32, CPU), before)["added_bits_per_byte"]
    int8, sparsegpt, magnitude, random = added.values()
    assert abs(int8) < 0.005
    assert -0.005 < sparsegpt < magnitude < random / 2
    assert all(value != value for value in one.likeness(before * torch.nan, before).values())


@pytest.mark.usefixtures("weights")
def test_calls_are_windows_of_the_committed_texts() -> None:
    one = build_network("lm")
    held_out, calibration = (text.committed_text(name) for name in (text.HELD_OUT, text.CALIBRATION))
    (call_BT,) = one.call(3, torch.float32, CPU, 0)
    assert torch.equal(call_BT.flatten(), held_out[: 3 * 64].long())
    (many_BT,) = one.call(3000, torch.float32, CPU, 0)
    assert many_BT.shape == (3000, 64), "more than there are: some again"
    calls = one.calibration(torch.float32, CPU, 0)
    assert torch.equal(torch.cat([bytes_BT.flatten() for (bytes_BT,) in calls]), calibration[: 127 * 64].long())


def test_without_its_weights_it_says_how_to_make_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "WEIGHTS", Path("no_such_weights"))
    one = build_network("lm")
    assert "python tests/data/train_lm.py --corpus lm_corpus.txt" in (one.unavailable(CPU) or "")
    with pytest.raises(InputError, match=r"lm: its weights.*collect_text\.py lm_corpus\.txt && .*train_lm\.py"):
        one.build(torch.float32, CPU, 0)
    assert isinstance(one.skeleton(), ByteGPT), "a grid of it can be laid out"


@pytest.mark.skipif(not lm.WEIGHTS.is_file(), reason=lm.MISSING)
def test_the_committed_weights_are_those_that_their_record_tells_of() -> None:
    about = json.loads(lm.WEIGHTS.with_suffix(".json").read_text())
    assert about["weights"] == hashlib.sha256(lm.WEIGHTS.read_bytes()).hexdigest()
    assert about["corpus"] == text.about_texts()["files"][text.CORPUS], "of another corpus: train anew"
    assert lm.WEIGHTS.stat().st_size <= 8e6
    one = build_network("lm")
    some = one.judged(one.build(torch.float32, CPU, 0), torch.float32, CPU).mean().item()
    glance = float(about["curve"][-1].split()[-1])
    assert some == pytest.approx(glance, abs=0.1), "both of the beginning of what is held out: a tenth, and 32 windows"
