"""Every public function and class of the package is fuzzed, or is named here with the reason why not."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import blockshock

pytestmark = pytest.mark.reliability
HERE = Path(__file__).parent
NOT_FUZZED = {
    "blockshock.ranks": "starts processes: faults are injected by tests/test_rank_faults.py and others",
    "blockshock.environment": "takes no arguments",
    "blockshock.doctor": "looks at this machine: each check is broken in turn by tests/test_doctor.py",
    "blockshock.kernels.cusparselt": "needs a GPU: tests/test_gpu_kernels.py; over a fake, tests/test_layouts.py",
    "blockshock.kernels.cusparselt_search": "needs a GPU: tests/test_gpu_cusparselt.py, tests/test_cusparselt.py",
    "blockshock.kernels.cutlass": "needs a GPU of compute capability 8.x",
    "blockshock.meeting": "ranks wait for each other: tests/test_meeting.py",
    "blockshock.replaceable": "each kind that is refused: tests/test_replaced_linears.py",
    "blockshock.scaling": "takes no arguments: tests/test_scaling.py",
    "blockshock.sharded": "over several ranks: tests/test_wrappers.py and tests/test_checkpointing.py",
    "blockshock.wrappers": "takes no arguments: tests/test_wrappers.py",
    "blockshock.dtensor_linear": "the rival, torch's own: tests/test_methods.py",
    "blockshock.methods.dtensor": "the rival, torch's own: tests/test_methods.py",
    "blockshock.phases": "run on ranks, with what the fuzzed options resolve to",
    "blockshock.plugin": "pytest calls them, with what the fuzzed options resolve to",
    "blockshock.report.plots": "drawn of fuzzed runs by write_folder",
    "blockshock.report.render": "drawn of fuzzed runs by write_folder",
    "blockshock.report.workers": "takes no arguments",
}
"""Modules, and packages with all that is in them; single names of them may be fuzzed nevertheless."""
ALSO_NOT = {
    "autograd.product": "every forward pass of test_fuzz_layers.py goes through it",
    "clipping.local_gradient": "called by clip_grad_norm_ for every gradient",
    "collectives.global_ranks": "called by clip_grad_norm_ for every group",
    "memory.free_bytes": "takes a device alone",
    "memory.indexed": "takes a device alone",
    "mask_state.faults_of_state": "called for every state that is loaded",
    "memory.cache_bytes": "takes a device alone",
    "memory.peak_bytes": "takes a device alone",
    "timing.capture": "needs a GPU",
    "timing.warm_up": "needs a GPU",
    "timing.check_durations": "called by slowest() for every series",
    "turns.turn": "holds files that processes wait for: tests/test_turns.py",
    "storages.DenseStorage": "made by the methods of test_fuzz_layers.py",
    "kernels.algorithm_cache.cache_folder": "takes no arguments",
    "blocks.check_slice": "the check behind every rows() and columns()",
    "registry.check_range": "the check behind every number in a spec",
    "hypotheses.claims": "made by cases.hypotheses",
    "masks.Complement": "made by complement()",
    "masks.Transposed": "made by transposed()",
    "row_patterns.Every": "a part of RowPatterns",
    "report.tables.footnotes": "called for every table that is shown",
    "arguments.check_options": "called by every BlockShockLinear that is fuzzed",
    "arguments.check_x": "called by every forward pass of one",
    "autograd.check_once": "called by every backward pass of a layer",
    "stages.Recorder": "made by recording()",
    "storages.Storage": "the base of the storages that are fuzzed",
    "report.command.report": "all that it calls is fuzzed; itself by tests/test_report.py",
    "report.comparison.same_bits": "called for every row that was checked",
    "report.journal.next_journal": "called by every session",
    "report.journal.next_run": "called by recover()",
    "report.journal.write_whole": "called by recover()",
    "report.limits.losses": "called for every row with limits",
    "report.page.inline": "called for every plot of write_folder",
    "report.settle.bare": "called by settled() for every row",
    "report.settle.is_timed": "called by settled() for every row",
    "report.run_tables.short_name": "called for every row that was profiled",
    "report.show.print_comparison": "print_tables on comparison, both fuzzed",
    "steps.follow": "called by every storage",
    "steps.replace": "called by every BlockShockLinear",
    "steps.part_of": "called by check_elementwise() for every parameter",
}


def public() -> dict[str, str]:
    """Functions and classes without an underscore, by module and name, where they are defined."""
    found = {}
    for module in pkgutil.walk_packages(blockshock.__path__, "blockshock."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if not (inspect.isfunction(value) or inspect.isclass(value)) or value.__name__ != name:
                continue
            own = getattr(value, "__module__", "") == module.name and not name.startswith("_")
            if own:
                found[f"{module.name.removeprefix('blockshock.')}.{name}"] = name
    return found


def names_in(path: Path) -> set[str]:
    """All that a test file calls by name."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in nodes
        if isinstance(node, ast.Name | ast.Attribute)
    }


def is_plain(name: str) -> bool:
    """An error, a protocol or a record, with nothing of its own to call; or what a registry makes by a fuzzed spec."""
    module, _, last = name.rpartition(".")
    value = getattr(importlib.import_module(f"blockshock.{module}"), last)
    if not inspect.isclass(value):
        return last.endswith(("_mask", "_target", "_loss")) and module in ("patterns", "workloads")
    own = [key for key, held in vars(value).items() if inspect.isfunction(held) and not key.startswith("_")]
    registered = module in ("workloads", "optimizers", "half_storages") or module.startswith(("kernels.", "methods."))
    return not own or registered or issubclass(value, Exception) or getattr(value, "_is_protocol", False)


def test_every_public_function_is_fuzzed_or_excused() -> None:
    called = set().union(*map(names_in, HERE.glob("test_fuzz_*.py")))
    excused = tuple(name.removeprefix("blockshock.") + "." for name in NOT_FUZZED)
    missing = [
        name
        for name, last in public().items()
        if last not in called and not name.startswith(excused) and name not in ALSO_NOT and not is_plain(name)
    ]
    assert not missing


def test_what_is_excused_is_there() -> None:
    assert ALSO_NOT.keys() <= public().keys()
    for name in NOT_FUZZED:
        importlib.import_module(name)
