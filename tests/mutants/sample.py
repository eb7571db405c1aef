"""Which mutants are tried: some lines of each wing, drawn by a hash, and one mutation of each by cosmic-ray."""

from __future__ import annotations

import ast
import difflib
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from mutant import ROOT, Mutant

OPERATORS = [name for name in operator_names() if "/Variable" not in name]
"""Of cosmic-ray; those that put another variable in a place make code that no one would write."""


def sample(wing: str, count: int, seed: int) -> list[Mutant]:
    """The mutants of a wing. What is drawn of a line hangs on its text alone: it stays when other lines change."""
    drawn = []
    for path in sorted((ROOT / "blockshock" / wing).rglob("*.py")):
        file, code = path.relative_to(ROOT / "blockshock").as_posix(), path.read_text(encoding="utf-8")
        lines = code.splitlines()
        for line, mutations in _mutations(code).items():
            text = lines[line - 1]
            of_this_text = partial(_hash, seed, file, text, lines[:line].count(text))
            drawn.append((of_this_text(), file, line, sorted(mutations, key=lambda one, of=of_this_text: of(*one))))
    return [*islice(filter(None, (_mutant(*rest) for _, *rest in sorted(drawn))), count)]


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _mutations(code: str) -> dict[int, list[tuple[str, int]]]:
    """Of each line the operators that can change it, each with the number of the place in the file."""
    found: dict[int, list[tuple[str, int]]] = defaultdict(list)
    annotations, nodes = list(_annotations(code)), list(ast_nodes(get_ast(code)))
    for name in OPERATORS:
        operator = get_operator(name)()
        starts = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, start in enumerate(starts):
            if not any(first <= start < last for first, last in annotations):
                found[start[0]].append((name, occurrence))
    return found


def _annotations(code: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations stand: they are not run."""
    for node in ast.walk(ast.parse(code)):
        for name in "annotation", "returns":
            if (one := getattr(node, name, None)) is not None:
                yield (one.lineno, one.col_offset), (one.end_lineno, one.end_col_offset)


def _mutant(file: str, line: int, mutations: list[tuple[str, int]]) -> Mutant | None:
    """The first of these mutations that is Python, if one is."""
    before = (ROOT / "blockshock" / file).read_text(encoding="utf-8")
    for operator, occurrence in mutations:
        after = mutate_code(before, get_operator(operator)(), occurrence)
        with suppress(SyntaxError):
            ast.parse(after)
            break
    else:
        return None
    pair = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    changed = [text.strip() for text in list(pair)[2:] if not text.startswith("@@")]
    was, now = (" ".join(one[1:].strip() for one in changed if one[0] == sign) for sign in "-+")
    return Mutant(file, line, before.splitlines()[line - 1].strip(), f"{was} → {now or '(nothing)'}", after)
