"""Nothing that is read from a disk can run code: the package names no loader that would let it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from inner_pytest import ROOT

pytestmark = pytest.mark.reliability

UNSAFE_MODULES = {"marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE = {
    *("eval", "exec", "builtins.eval", "builtins.exec", "pandas.read_pickle"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "_pickle.load", "_pickle.loads", "_pickle.Unpickler"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.FullLoader", "yaml.UnsafeLoader"),
}
UNSAFE_UNLESS = {"torch.load": ("weights_only", True, False), "numpy.load": ("allow_pickle", False, True)}
"""Of a loader: an argument, the value that makes it safe, and whether it is safe without."""
OWN_PIPES = "blockshock/ranks"
"""What begins so may unpickle what its own processes say through a pipe."""


def unsafe(source: str) -> Iterator[str]:
    """The unsafe loaders that a module names, whatever it calls them."""
    tree = ast.parse(source)
    aliases = dict(_aliases(tree))
    safe = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_safe(node, aliases)}
    for node in ast.walk(tree):
        name = _name(node, aliases)
        refused = name in UNSAFE or name.partition(".")[0] in UNSAFE_MODULES or name in UNSAFE_UNLESS
        if refused and id(node) not in safe:
            yield name


def _aliases(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _name(node: ast.AST, aliases: dict[str, str]) -> str:
    """Full name of what an expression refers to, or nothing."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := _name(node.value, aliases)):
        return f"{owner}.{node.attr}"
    return ""


def _is_safe(call: ast.Call, aliases: dict[str, str]) -> bool:
    name, safe, by_default = UNSAFE_UNLESS.get(_name(call.func, aliases), ("", None, False))
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name not in given:
        return by_default and None not in given
    value = given[name]
    return isinstance(value, ast.Constant) and value.value is safe


FILES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "blockshock").rglob("*.py"))]


def test_the_package_loads_nothing_unsafely() -> None:
    found = {path: set(unsafe((ROOT / path).read_text())) for path in FILES}
    pipes = {path for path, names in found.items() if "pickle.loads" in names}
    assert pipes, "the ranks' pipes are looked at"
    assert {path for path in pipes if not path.startswith(OWN_PIPES)} == set()
    assert {path: names - {"pickle.loads"} for path, names in found.items() if names - {"pickle.loads"}} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(open(path, 'rb'))",
        "from pickle import loads as read\nread(data)",
        "import pickle\nclass Reader(pickle.Unpickler): pass",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=flag)",
        "from torch import load\nlist(map(load, paths))",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, **options)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import shelve\nshelve.open(path)",
        "import marshal\nmarshal.loads(data)",
        "import pandas as pd\npd.read_pickle(path)",
        "eval(text)",
        "import builtins\nbuiltins.exec(text)",
    ],
)
def test_an_unsafe_loader_is_found(source: str) -> None:
    assert list(unsafe(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)",
        "import json, yaml, pickle\njson.load(file), yaml.safe_load(file), pickle.dumps(1)",
        "model.eval(), loader.exec_module(module), self.load(path)",
    ],
)
def test_a_safe_loader_is_not(source: str) -> None:
    assert not list(unsafe(source))
