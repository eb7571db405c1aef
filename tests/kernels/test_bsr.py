"""The kernel bsr over a fake of torch's: right for every size, layout and length, and searched by what is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fake_bsr import check, faked, packed_of
from strategies import LAYOUTS, matrix
from torch import nn

from blockshock import MethodLinear
from blockshock.errors import InputError, KernelUnavailable
from blockshock.kernels import BlockLayout, bsr, build_block_kernel
from blockshock.kernels.bsr_search import Found, Setting
from blockshock.kernels.right import is_product
from blockshock.machine import cache_folder, torch_internals
from blockshock.machine.memory import held_bytes
from blockshock.matrices.block_mask import BLOCK_SIZES
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights
from blockshock.pruning import block_mask


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("more", ["level=0.0", "level=0.8", "level=0.95:inside=1010"])
def test_every_size_level_and_length(size: int, more: str) -> None:
    with faked():
        found = packed_of(f"blocks:size={size}:{more}")
        assert found[0].size == max(size, 16)
        for B in (1, 2, 15, 16, 17, 63, 64, 100, 257):
            check(*found, B)
        assert found[0](matrix(1, 256, torch.bfloat16, 0)[:0]).shape == (0, 128)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_x_may_lie_anyhow(layout: str) -> None:
    with faked():
        for B in (16, 37):
            check(*packed_of(), B, layout)


def test_more_tokens_than_32_bits_count_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bsr, "_ADDRESSED", 256 * 70)
    with faked() as kernel:
        check(*packed_of(), 300)
        assert len(kernel.launches) == 2 * 5


def test_new_values_reach_both_directions() -> None:
    with faked():
        packed, _, bias = packed_of("blocks:size=8:level=0.8")
        _, w_NK, _ = packed_of("blocks:size=8:level=0.8", seed=0)
        packed.recompress((2 * w_NK).bfloat16())
        check(packed, 2 * w_NK, bias, 5)


def test_a_wrong_block_index_is_caught() -> None:
    with faked():
        found = packed_of()
        check(*found, 16)
        found[0].columns[2] = (found[0].columns[2] + 1) % 16
        with pytest.raises(AssertionError):
            check(*found, 16)


def test_what_multiplies_wrongly_is_turned_away_and_remembered() -> None:
    """Two stages gave silent garbage once: a planted fault."""
    with faked(lambda meta: meta["num_stages"] in (2, 3)):
        found = packed_of(kernel="bsr")
        check(*found, 100)
        assert isinstance(found[0], bsr.PackedBsr)
        (setting,) = found[0]._chosen.values()
        assert setting.stages not in (2, 3)
        assert "turned away: tile 128, group 1, 3 stages, 4 warps" in found[0].algorithm
        stored = json.loads((cache_folder() / "bsr-checked.json").read_text())
        key, *_ = stored
        assert "N128 K256 blocks 38 of 16 B128 torch.bfloat16 bias=True" in key
        assert all(away[2] in (2, 3) for away in stored[key]["turned_away"])
        again = packed_of(kernel="bsr")
        bsr._settings._known.clear()

        def refused(*_: object) -> Found:
            raise AssertionError("it was searched again")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bsr, "tuned", refused)
            check(*again, 70)  # of the same octave
        assert again[0].algorithm == found[0].algorithm


def test_where_nothing_is_right_it_says_what_was_tried() -> None:
    with faked(lambda meta: True):
        found = packed_of(kernel="bsr")
        with pytest.raises(
            KernelUnavailable, match=r"up to 16 tokens, nothing multiplies right .* no setting \(turned aw"
        ):
            check(*found, 9)


@pytest.mark.parametrize("setting", [[16, 1, 1], [24, 1, 1, 4], [16, 1, 99, 4], [16, 1, 1, 4.0]])
def test_what_is_damaged_on_disk_is_no_answer(setting: list[float]) -> None:
    whole = {"setting": [16, 1, 1, 4], "turned_away": [[32, 1, 2, 4]], "failed": ""}
    assert Found.read(whole) == Found(Setting(16, 1, 1, 4), (Setting(32, 1, 2, 4),))
    damaged = [None, 3, {}, whole | {"setting": setting}, whole | {"turned_away": 3}]
    assert [Found.read(found) for found in damaged] == [None] * 5
    assert all(Found.read({key: whole[key] for key in whole if key != lost}) is None for lost in whole)


def test_products_that_are_wrong_somewhere_are_told_from_right_ones() -> None:
    w_NK, x_BK, bias = (torch.randn(shape).bfloat16() for shape in ((64, 128), (40, 128), (1, 64)))
    y_BN = (x_BK.double() @ w_NK.double().T + bias.double()).bfloat16()
    assert is_product(y_BN, x_BK, w_NK, bias[0])
    assert not is_product(y_BN, x_BK, w_NK, None)
    y_BN[39, 63] += 4
    assert not is_product(y_BN, x_BK, w_NK, bias[0])
    y_BN[39, 63] = float("nan")
    assert not is_product(y_BN, x_BK, w_NK, bias[0])


def test_what_it_cannot_take_is_said() -> None:
    built = build_block_kernel("bsr")
    assert built.unsuitable(72, 64, 8) == "multiplies blocks of 16 and up, which do not divide N = 72, K = 64"
    assert built.unsuitable(64, 64, 8) is None
    assert "not torch.float32" in str(built.unavailable(torch.device("cuda"), torch.float32))
    if not torch.cuda.is_available():
        assert torch_internals.has_bsr() is False
        assert "install triton" in str(built.unavailable(torch.device("cuda"), torch.bfloat16))
    source = TensorWeights(torch.ones(24, 64).bfloat16())
    with faked(), pytest.raises(InputError, match="block kernel bsr: multiplies blocks of 16 and up"):
        built.check(Piece(source, mask=block_mask("blocks:size=8", source)), 8)


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_what_is_held_is_what_is_said(size: int) -> None:
    with faked():
        packed, _, _ = packed_of(f"blocks:size={size}:level=0.9")
        built = build_block_kernel("bsr")
    count = block_count(size)
    layout = BlockLayout(128, 256, size, count)
    held, said = held_bytes(packed.tensors()) - 128 * 2, built.weight_bytes(layout, 2) + built.backward_bytes(layout, 2)
    assert held == said if size >= 16 else held <= said
    assert build_block_kernel("bsr:search=no").build_bytes(layout, 2) == built.weight_bytes(layout, 2)
    dense = 128 * 256 * 2
    assert built.build_bytes(layout, 2) == built.weight_bytes(layout, 2) + dense + built.stored(layout).value_bytes(2)
    stored = len(packed.columns)
    assert packed.operand.values == stored * max(size, 16) ** 2
    assert packed.operand.size == stored * (8 + 2 * max(size, 16) ** 2) + 8 * (128 // max(size, 16) + 1)


def block_count(size: int) -> int:
    return round(0.1 * (128 // size) * (256 // size)) or 1


def test_a_layer_trains_with_what_is_searched_in_both_passes() -> None:
    with faked(lambda meta: meta["num_stages"] == 3):
        torch.manual_seed(0)
        linear = nn.Linear(128, 64, dtype=torch.bfloat16)
        layer = MethodLinear(linear, "block_sparse-bsr-blocks:size=16:level=0.5")
        dense, kept = layer.to_linear(), layer.mask.dense()  # type: ignore[union-attr]
        dense.weight.register_hook(lambda grad: grad * kept)
        for model in (layer, dense):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            model(torch.ones(7, 128, dtype=torch.bfloat16, requires_grad=True)).float().square().mean().backward()
            optimizer.step()
        torch.testing.assert_close(layer.to_linear().weight, dense.weight, rtol=0.02, atol=0.02)
        layer.check()
        assert str(layer).count("turned away") == 2, "forward, and backward by a packing of Wᵀ"


@pytest.mark.filterwarnings("ignore")  # compilers say this and that
def test_compiled_code_calls_it_as_one_operation() -> None:
    with faked():
        packed, w_NK, bias = packed_of()
        x_BK = matrix(37, 512, torch.bfloat16, 0)[:, 256:]
        y_BN = torch.compile(packed, backend="eager", fullgraph=True)(x_BK)
    torch.testing.assert_close(
        y_BN.double(), x_BK.double() @ w_NK.T + bias, rtol=torch.finfo(torch.bfloat16).eps, atol=1e-30
    )
