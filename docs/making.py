"""What it costs to make a matrix 2:4, in copies of it: measured by `python docs/making.py NAME` on a GPU.

Writes ``docs/making/NAME.json`` and, of all that were measured, ``docs/making.md``; without a name the latter alone.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measured import heading, page_of, ran_here

from blockshock.kernels.gradient24 import gradient24_
from blockshock.kernels.make24 import Making, make24
from blockshock.kernels.soft24 import Soft, soften24
from blockshock.measure.timing import median_seconds
from blockshock.training.sparse import bits_of_mask, mask_24, masked_decay_

HERE = Path(__file__).parent
SIZES = ((4096, 4096), (16384, 4096), (8192, 8192), (16384, 16384))
BUILDS = 5
"""Times that everything is captured anew; each is the median of its rounds."""
ASKED = {
    "rows, the largest sizes": 1.6,
    "columns": 1.6,
    "tiles, the best of 90": 1.6,
    "tiles, signed, relu² after": 1.6,
    "rows, gelu before": 1.6,
    "tiles, gelu before": 1.6,
    "tiles, exact": 3.0,
    "a given mask": 1.6,
    "the same, back through relu²": None,
    "the same, back through gelu": None,
    "the same, back through relu², dense": None,
    "straight back through gelu, dense": None,
    "rows, of what stays columns too, relu² after": 1.6,
    "the same, of a gradient, back through relu²": None,
    "soft threshold": 1.5,
    "soft threshold, dense too, with its mask": None,
    "MVUE along rows": 1.5,
    "MVUE along columns": 1.5,
    "masked decay, its mask as bits": 1.5,
    "torch's tile kernel": None,
    "torch's apply of a mask": None,
    "cuSPARSELt's compression": None,
}
"""At most so many copies were asked for, of each that is measured."""


def calls(x_RC: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """What is measured, of a matrix of bf16 on a GPU."""
    seed, given = torch.tensor([1, 2], dtype=torch.int32, device=x_RC.device), make24(x_RC, Making())
    back = {name: Making("tiles", "given", name) for name in ("relu2", "gelu")}
    rows = Making("rows_first", "largest", "relu2")
    kept, back_rows = make24(x_RC, rows), rows._replace(choice="given")
    others = torch.arange(0, x_RC.shape[1], 20, device=x_RC.device)
    assert kept.rows is not None
    assert kept.mask is not None
    one = torch.ones((), dtype=torch.float64, device=x_RC.device)
    soft = Soft.of(torch.empty_like(x_RC), kept.rows.clone())
    mask_RC, grad_RC = mask_24(x_RC), x_RC.clone()
    thin_RC, bits = x_RC.where(mask_RC, 0), bits_of_mask(mask_RC)
    tiled = torch._sparse_semi_structured_tile(x_RC, "largest_abs_values_greedy", False)
    made = [
        lambda: make24(x_RC, Making("rows")),
        lambda: make24(x_RC, Making("columns")),
        lambda: make24(x_RC, Making()),
        lambda: make24(x_RC, Making("tiles", "largest", "relu2")),
        lambda: make24(x_RC, Making("rows", "largest_size", "gelu", True)),
        lambda: make24(x_RC, Making("tiles", "largest_size", "gelu", True)),
        lambda: make24(x_RC, Making(exact=True)),
        lambda: make24(x_RC, Making(choice="given"), given.mask),
        lambda: make24(x_RC, back["relu2"], given.mask, z_RC=x_RC, with_sums=True),
        lambda: make24(x_RC, back["gelu"], given.mask, z_RC=x_RC, with_sums=True),
        lambda: gradient24_(grad_RC, x_RC, bits, Making(activation="relu2"), with_sums=True),
        lambda: gradient24_(grad_RC, x_RC, bits, Making(activation="gelu", first=True), straight=True, with_sums=True),
        lambda: make24(x_RC, rows, with_counts=True),
        lambda: make24(x_RC, back_rows, kept.mask, z_RC=x_RC, with_sums=True, others=others),
        lambda: make24(x_RC, Making("rows", "soft")),
        lambda: (soft, soften24(x_RC, one, soft)),
        lambda: make24(x_RC, Making("rows", "mvue"), seed=seed),
        lambda: make24(x_RC, Making("columns", "mvue"), seed=seed),
        lambda: masked_decay_(grad_RC, x_RC, bits, 1e-4),
        lambda: torch._sparse_semi_structured_tile(x_RC, "largest_abs_values_greedy", False),
        lambda: torch._sparse_semi_structured_apply(x_RC, tiled[4]),
        lambda: torch._cslt_compress(thin_RC),
    ]
    return dict(zip(ASKED, made, strict=True))


def measure(device: torch.device) -> dict[str, Any]:
    """Microseconds of each build, of each size and call; None of what cannot be captured or does not run here."""
    found: list[dict[str, Any]] = []
    for R, C in SIZES:
        x_RC = torch.randn(R, C, device=device, generator=torch.Generator(device).manual_seed(0)).bfloat16()
        copied = torch.empty_like(x_RC)
        every: dict[str, Callable[[], Any]] = {"copy": lambda to=copied, x=x_RC: to.copy_(x), **calls(x_RC)}
        times: dict[str, list[float] | None] = {}
        for name, call in every.items():
            try:
                times[name] = [round(median_seconds(call, device) * 1e6, 2) for _ in range(BUILDS)]
            except RuntimeError as error:
                torch.cuda.synchronize()
                print(f"{name}: {str(error).splitlines()[0]}")
                times[name] = None
        found.append({"R": R, "C": C, "microseconds": times})
        print(f"{R} × {C} done", flush=True)
    gpu = torch.cuda.get_device_name(device)
    return {**ran_here(gpu), "sizes": found}


def lines(name: str, found: dict[str, Any]) -> Iterator[str]:
    """Its section of the page."""
    sizes = found["sizes"]
    copies = [statistics.median(size["microseconds"]["copy"]) for size in sizes]
    yield from heading("making", name, found, "bf16, normal numbers of")
    yield "| copies of x | " + " | ".join(f"{size['R']} × {size['C']}" for size in sizes) + " | asked: at most |"
    yield "|---" * (len(sizes) + 2) + "|"
    yield "| a copy, µs | " + " | ".join(f"{copy:.1f}" for copy in copies) + " | |"
    for what, asked in ASKED.items():
        times = [size["microseconds"].get(what) for size in sizes]
        cells = [_cell(builds, copy) for builds, copy in zip(times, copies, strict=True)]
        yield f"| {what} | " + " | ".join(cells) + f" | {asked or ''} |"


def _cell(builds: list[float] | None, copy: float) -> str:
    if not builds:
        return "–"
    return f"{statistics.median(builds) / copy:.2f} ± {(max(builds) - min(builds)) / 2 / copy:.2f}"


def page() -> str:
    """The page of all that was measured."""
    return page_of(HERE / "making", lines)


def main(names: list[str]) -> None:
    """Measure what is named, and write the page."""
    for name in names:
        if not torch.cuda.is_available():
            sys.exit("a GPU makes 2:4 in one pass: run this on a machine that has one")
        found = measure(torch.device("cuda", torch.cuda.current_device()))
        (HERE / "making" / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (HERE / "making.md").write_text(page(), encoding="utf-8")
    print(f"wrote {HERE / 'making.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
