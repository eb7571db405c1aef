"""What the fuzz tests draw: texts that users type, numbers that clocks and files hold, matrices in every layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OTHERS = (torch.int8, torch.int64, torch.bool, torch.complex64)
ANY = (*FLOATS, *OTHERS)
SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 6e-8, 1e-40, 3e38, 65504.0)
HUGE = (2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**400)

seeds = st.integers(0, 2**32)
rows = st.sampled_from((1, 2, 3, 4, 7, 12, 16))
fours = st.sampled_from((4, 8, 12, 20, 28))
"""Sizes N, and K, of small matrices that have masks."""
PATHS = ("..", "../up", "/etc/passwd", "a/b", "C:\\x", "NUL", "~", "*", "$HOME", "a" * 300)
SCRIPTS = ("é", "e\u0301", "名前", "🧪", "\ud800", "\u202e", "\u2028", "a\0b", "a\nb", "\t")
MARKUP = ("", " ", "-", "--", "-x", "%s", "{0}", "<b>&amp;</b>", "`a`", "a|b", "[red]")
odd_names = st.sampled_from((*PATHS, *SCRIPTS, *MARKUP))
names = odd_names | st.text(max_size=12)
counts = st.integers(-5, 40) | st.sampled_from((-(10**30), -(2**63), *HUGE))
numbers = st.floats() | st.sampled_from((*SPECIAL, 5e-324, 1.0)) | counts
times = st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=12)
"""Seconds that a clock can give."""


def specs(choices: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Names of a registry, with and without parameters, and what is none."""
    keys = names | st.sampled_from(("std", "window", "every", "search", "act", "lr", "momentum", "layer", "source"))
    value = st.one_of(names, numbers.map(str), st.sampled_from(("yes", "no", "1e-4", "1_0", "９")))
    pair = st.tuples(keys, value).map("=".join)
    known = st.sampled_from(choices)
    with_parameters = st.tuples(known, st.lists(pair | names, min_size=1, max_size=2)).map(
        lambda s: ":".join([s[0], *s[1]])
    )
    return known | with_parameters | names


def lists(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Values of an option that takes several."""
    return st.lists(parts, max_size=3).map(",".join) | st.sampled_from((",", ",,", " , ", "all", " all ", "all,all"))


_VIEWS: dict[str, Callable[[Callable[..., torch.Tensor], int, int], torch.Tensor]] = {
    "whole": lambda draw, rows, columns: draw(rows, columns),
    "transposed": lambda draw, rows, columns: draw(columns, rows).T,
    "every second": lambda draw, rows, columns: draw(rows, 2 * columns)[:, ::2],
    "part": lambda draw, rows, columns: draw(rows + 3, columns + 5)[1 : rows + 1, 3 : columns + 3],
    "first columns": lambda draw, rows, columns: draw(rows, 2 * columns)[:, :columns],
    "last columns": lambda draw, rows, columns: draw(rows, columns + 8)[:, 8:],
    "odd columns": lambda draw, rows, columns: draw(rows, columns + 1)[:, 1:],
    "every third row": lambda draw, rows, columns: draw(3 * rows, columns)[::3],
    "last rows": lambda draw, rows, columns: draw(rows + 1, columns)[1:],
    "expanded rows": lambda draw, rows, columns: draw(1, columns).expand(rows, columns),
    "expanded columns": lambda draw, rows, columns: draw(rows, 1).expand(rows, columns),
    "expanded": lambda draw, rows, columns: draw(1, 1).expand(rows, columns),
    "permuted": lambda draw, rows, columns: draw(3, rows, columns).permute(1, 0, 2)[:, 2],
    "heads": lambda draw, rows, columns: draw(columns, rows, 2).permute(1, 2, 0).flatten(1)[:, :columns],
    "one element on": lambda draw, rows, columns: draw(rows * columns + 1)[1:].view(rows, columns),
    "overlapping": lambda draw, rows, columns: draw((rows - 1) * -(-columns // 2) + columns).as_strided(
        (rows, columns), (-(-columns // 2), 1)
    ),
}
LAYOUTS = tuple(_VIEWS)
"""How a matrix can lie in memory."""


def matrix(
    rows: int, columns: int, dtype: torch.dtype, seed: int, layout: str = "whole", device: str = "cpu"
) -> torch.Tensor:
    """Small whole numbers and halves, which every dtype holds and every order of summation adds alike."""
    stream = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randint(-8, 9, shape, generator=stream) / 2).to(device, dtype)

    return _VIEWS[layout](draw, rows, columns)


def with_special(tensor: torch.Tensor, seed: int, values: tuple[float, ...] = SPECIAL) -> torch.Tensor:
    """A copy in the same layout, or nearly, in which some elements are what few expect."""
    stream = torch.Generator().manual_seed(seed)
    where = torch.rand(tensor.shape, generator=stream) < 0.3
    which = torch.randint(len(values), tensor.shape, generator=stream)
    return tensor.where(~where, torch.tensor(values, dtype=torch.float64)[which].to(tensor.dtype))


@st.composite
def matrices(
    draw: Any, rows: Any, columns: Any, dtypes: tuple[torch.dtype, ...] = FLOATS, special: bool = False
) -> torch.Tensor:
    """Matrices of drawn sizes, dtypes and layouts; with NaN, inf, subnormals and −0.0, if special."""
    seed = draw(seeds)
    found = matrix(draw(rows), draw(columns), draw(st.sampled_from(dtypes)), seed, draw(st.sampled_from(LAYOUTS)))
    return with_special(found, seed) if special and draw(st.booleans()) else found


def mask_rows(rows: int, columns: int, seed: int) -> torch.Tensor:
    """A random 2:4 mask (rows, columns), made without the package."""
    stream = torch.Generator().manual_seed(seed)
    order = torch.rand(rows, columns // 4, 4, generator=stream).argsort(-1)
    return (order < 2).reshape(rows, columns)


def is_2to4(mask_NK: torch.Tensor) -> bool:
    """The definition, by the book."""
    return all(sum(row[i : i + 4]) == 2 for row in mask_NK.tolist() for i in range(0, len(row), 4))


def equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """The same bits, NaN and −0.0 too."""
    # Copied, for a single element is contiguous whatever its strides.
    one, other = (tensor.clone(memory_format=torch.contiguous_format).view(-1) for tensor in (found, wanted))
    return found.shape == wanted.shape and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
