"""Collect English text: what is written in the docstrings of packages that constraints.txt pins.

Makes ``lm_corpus.txt`` (11 MB), which the byte-level language model is trained on, and two files that are committed in
``blockshock/models/data``: ``lm_held_out.txt``, by which it is judged, and ``lm_calibration.txt``, a piece of the
corpus that pruners are calibrated with. ``lm_corpus.json`` there says what each hash must be; a corpus that is another
one is not written, and the packages that differ are named.

How to run, in an environment of its own or in the one of the suite:

    python -m pip install -c constraints.txt torch numpy sympy networkx mpmath fsspec Jinja2 mypy Pygments pytest rich \
        setuptools
    python tests/data/collect_text.py lm_corpus.txt

Files are read, in a fixed order, and never imported; what they say does not hang on the machine, nor on the version of
Python. Docstrings are found in the syntax tree, and so is what is given to ``add_docstr`` and ``add_newdoc``. They are
cut at blank lines. A paragraph is left out if it is code (``>>>``), short, not ASCII, no text for the most part, or was
there before, however its lines were broken. What is left of a file is a *document*.

Documents are held out whole: of the packages in HELD_OUT_OF, in the order of the hashes of their names, those of
2,000 to 12,000 bytes, until there are 128 KiB. Their paragraphs come last, so that none of them is in the corpus.

Licences: all packages are under BSD, MIT or Apache licences. What is committed is of those under the BSD licence of
three clauses alone: ``blockshock/models/data/LICENSE-lm-text.txt``.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "blockshock" / "models" / "data"
LICENCES = {
    **dict.fromkeys(("torch", "numpy", "sympy", "networkx", "mpmath", "fsspec", "Jinja2"), "BSD-3-Clause"),
    **{"mypy": "MIT", "Pygments": "BSD-2-Clause", "pytest": "MIT", "rich": "MIT", "setuptools": "MIT"},
}
"""Of each package, in the order in which they are read."""
HELD_OUT_OF = ("torch", "numpy", "sympy", "networkx")
LEFT_OUT = re.compile(r"/tests?/|/_vendor/|^torch/testing/_internal/")
"""Files of tests, which say little, and of other packages."""
ADD = ("add_docstr", "add_newdoc", "add_newdoc_for_scalar_type")
"""Functions that are given docstrings of what is not written in Python."""
HELD_OUT, SMALL, LARGE = 128 << 10, 2_000, 12_000
CALIBRATION = 64 << 10
SHORT, LETTERS = 40, 0.75
"""Characters that a paragraph has at least, and the share of them that are letters or blanks."""
PARAGRAPH, DOCUMENT = "\n\n", "\n\n\n"

Documents = dict[str, list[str]]
"""Paragraphs, by the file's name: of its package, and in it."""


def texts(source: bytes) -> Iterator[str]:
    """The docstrings of a file, and what it gives to functions that add some."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that are none
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        elif isinstance(node, ast.Call) and _name(node.func) in ADD:
            for inner in (inner for given in node.args for inner in ast.walk(given)):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    yield inspect.cleandoc(inner.value)


def _name(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def paragraphs(text: str) -> Iterator[str]:
    """Those that are English."""
    for lines in re.split(r"\n\s*\n", text):
        paragraph = "\n".join(line.rstrip() for line in lines.strip("\n").splitlines())
        told = flat(paragraph)
        letters = sum(character.isalpha() or character == " " for character in told)
        if len(told) >= SHORT and told.isascii() and ">>>" not in told and letters >= LETTERS * len(told):
            yield paragraph


def flat(paragraph: str) -> str:
    """It on one line: two that differ in how lines are broken are one."""
    return " ".join(paragraph.split())


def documents(package: str) -> Documents:
    """Of an installed package, by the names of its files."""
    found: Documents = {}
    one = distribution(package)
    for file in sorted(one.files or [], key=lambda file: file.as_posix()):
        name = file.as_posix()
        if file.suffix == ".py" and not LEFT_OUT.search(name):
            told = texts(Path(one.locate_file(file)).read_bytes())  # type: ignore[arg-type]
            found[f"{package} {name}"] = [paragraph for text in told for paragraph in paragraphs(text)]
    return found


def held_out(found: Documents, packages: tuple[str, ...] = HELD_OUT_OF, size: int = HELD_OUT) -> list[str]:
    """Names of the documents that are not trained on."""
    chosen: list[str] = []
    for name in sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest()):
        held = len(PARAGRAPH.join(found[name]))
        if name.split()[0] in packages and SMALL <= held <= LARGE and size > 0:
            chosen.append(name)
            size -= held
    return sorted(chosen)


def without_repeats(found: Documents, last: list[str]) -> Documents:
    """Each paragraph where it is first, and those documents last of all; without documents of which nothing is left."""
    seen: set[str] = set()
    kept: Documents = {}
    for name in [*(name for name in found if name not in last), *last]:
        for paragraph in found[name]:
            if flat(paragraph) not in seen:
                seen.add(flat(paragraph))
                kept.setdefault(name, []).append(paragraph)
    return kept


def joined(found: Documents, names: list[str]) -> str:
    """Documents as one text."""
    return DOCUMENT.join(PARAGRAPH.join(found[name]) for name in names) + "\n"


def versions() -> dict[str, str]:
    """Of each package the one that is pinned.

    Raises:
        SystemExit: another one is installed, or none.
    """
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    for package in LICENCES:
        try:
            installed = distribution(package).version.partition("+")[0]
        except PackageNotFoundError:
            installed = "none"
        if installed != pins[package]:
            raise SystemExit(
                f"the text is that of {package} {pins[package]}, here is {installed}: "
                f"python -m pip install -c constraints.txt {' '.join(LICENCES)}"
            )
    return {package: pins[package] for package in LICENCES}


def collected() -> tuple[dict[str, str], dict[str, Any]]:
    """The three texts by the names of their files, and what is committed about them."""
    pinned = versions()
    found = {name: told for package in pinned for name, told in documents(package).items()}
    chosen = held_out(found)
    kept = without_repeats(found, chosen)
    train, last = ([name for name in kept if (name in chosen) == held] for held in (False, True))
    # A piece of the corpus, of the same packages and chosen in the same way as what is held out.
    few = held_out({name: kept[name] for name in train}, size=CALIBRATION)
    names = {"lm_corpus.txt": train, "lm_held_out.txt": last, "lm_calibration.txt": few}
    texts = {file: joined(kept, documents) for file, documents in names.items()}
    of_packages = {
        package: {
            "version": version,
            "licence": LICENCES[package],
            "sha256": sha256(joined(kept, [name for name in kept if name.split()[0] == package])),
        }
        for package, version in pinned.items()
    }
    return texts, {
        "files": {name: {"sha256": sha256(text), "bytes": len(text)} for name, text in texts.items()},
        "documents": {"corpus": len(train), "held out": last},
        "packages": of_packages,
    }


def sha256(text: str) -> str:
    """Of its bytes."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def main(arguments: list[str] | None = None) -> None:
    """Collect, compare with what is committed, and write."""
    parser = argparse.ArgumentParser(description="Collect the text that the language model is trained on.")
    parser.add_argument("to", type=Path, help="the file to write the corpus to")
    parser.add_argument("--new", action="store_true", help="write anew what is committed, too: of other pins")
    given = parser.parse_args(arguments)
    texts, about = collected()
    if given.new:
        (DATA / "lm_corpus.json").write_text(json.dumps(about, indent=2) + "\n", encoding="ascii")
        for name in ("lm_held_out.txt", "lm_calibration.txt"):
            (DATA / name).write_text(texts[name], encoding="ascii", newline="\n")
    committed = json.loads((DATA / "lm_corpus.json").read_text(encoding="ascii"))
    if about != committed:
        other = [name for name, told in about["packages"].items() if told != committed["packages"].get(name)]
        raise SystemExit(f"this is not the text that is committed; the docstrings of {', '.join(other)} differ")
    given.to.write_text(texts["lm_corpus.txt"], encoding="ascii", newline="\n")
    print(f"{given.to}: {about['files']['lm_corpus.txt']}")


if __name__ == "__main__":
    main(sys.argv[1:])
