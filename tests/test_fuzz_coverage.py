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
    "blockshock.ranks": "starts processes: faults are injected by tests/ranks/test_rank_faults.py and others",
    "blockshock.machine.environment": "takes no arguments",
    "blockshock.doctor": "looks at this machine: each check is broken in turn by tests/test_doctor.py",
    "blockshock.kernels.bsr": "needs a GPU: tests/kernels/test_gpu_bsr.py; over a fake, test_bsr.py",
    "blockshock.kernels.bsr_search": "each way that a search can go: tests/kernels/test_bsr_search.py",
    "blockshock.machine.bsr_kernel": "all that a launch receives: tests/kernels/test_bsr_launch.py",
    "blockshock.kernels.right": "the check behind every search: tests/kernels/test_bsr.py and test_cusparselt.py",
    "blockshock.kernels.cusparselt": "needs a GPU: tests/kernels/test_gpu_kernels.py; over a fake, test_layouts.py",
    "blockshock.kernels.cusparselt_search": "needs a GPU: tests/kernels/test_gpu_cusparselt.py, test_cusparselt.py",
    "blockshock.kernels.cusparselt_layout": "bits of the library's own: tests/kernels/test_cusparselt_layout.py",
    "blockshock.kernels.cusparselt_traced": "compiled over a fake: test_compiled.py and test_compiled_formats.py",
    "blockshock.kernels.cusparselt_thread": "takes a device alone: tests/kernels/test_cusparselt.py",
    "blockshock.kernels.formats.one_pass": "needs a GPU: tests/kernels/test_gpu_one_pass.py",
    "blockshock.kernels.fours": "needs a GPU: tests/training/test_gpu_sparse.py",
    "blockshock.kernels.blocks24": "needs a GPU: by each kernel of these, as follow",
    "blockshock.kernels.make24": "needs a GPU: tests/kernels/test_gpu_make24.py",
    "blockshock.kernels.gradient24": "needs a GPU: tests/kernels/test_gpu_gradient24.py",
    "blockshock.kernels.soft24": "needs a GPU: tests/training/test_weights_in_one_pass.py",
    "blockshock.kernels.masked24": "needs a GPU: tests/training/test_weights_in_one_pass.py",
    "blockshock.matrices.columns_on_gpu": "needs a GPU: tests/matrices/test_columns_on_gpu.py; its bytes: beside",
    "blockshock.kernels.cutlass": "needs a GPU of compute capability 8.x",
    "blockshock.kernels.streamed": "needs a GPU: tests/kernels/test_gpu_streamed.py and test_gpu_kernels.py",
    "blockshock.kernels.streamed_launch": "as well; what it launches: tests/kernels/test_streamed.py",
    "blockshock.kernels.streamed_layout": "lane by lane, for masks that are random: tests/kernels/test_streamed.py",
    "blockshock.kernels.wgmma": "needs a GPU: tests/kernels/test_gpu_wgmma.py",
    "blockshock.kernels.wgmma_layout": "by descriptors, for masks that are random: tests/kernels/test_wgmma.py",
    "blockshock.machine.streams": "needs a GPU: tests/machine/test_gpu_streams.py",
    "blockshock.machine.compiled": "needs a GPU; what it keeps on disk is damaged by tests/kernels/test_streamed.py",
    "blockshock.machine.combines": "over several ranks: tests/machine/test_combines.py, test_gpu_combines.py",
    "blockshock.machine.meeting": "ranks wait for each other: tests/machine/test_meeting.py",
    "blockshock.machine.torch_internals": "each is tried by tests/machine/test_torch_internals.py",
    "blockshock.machine.tensor_states": "by every layer, of what was written: tests/nn/test_stale_weights.py",
    "blockshock.machine.internal": "what those that follow are made of",
    "blockshock.machine.tried_internals": "all of it by tests/machine/test_torch_internals.py",
    "blockshock.machine.tried_on_gpus": "on a GPU, all of it by tests/machine/test_torch_internals.py",
    "blockshock.models.digits": "takes no arguments of a user's: tests/models/test_digits.py",
    "blockshock.models.llama": "drawn by its name in test_fuzz_models.py; its products: tests/models/test_networks.py",
    "blockshock.models.lm": "drawn by its name in test_fuzz_models.py: tests/models/test_byte_gpt.py",
    "blockshock.models.rotary": "called by every ByteGPT that is fuzzed",
    "blockshock.models.minilm": "as well; to the bit what a library recorded: tests/models/test_minilm.py",
    "blockshock.models.tasks": "by their names, from the first step to the last: tests/phases/test_curves.py",
    "blockshock.models.vit": "as llama",
    "blockshock.nn.replaceable": "each kind that is refused: tests/nn/test_replaced_linears.py",
    "blockshock.training.recipes": "by their names: tests/training/test_recipes.py, tests/phases/test_recipe_steps.py",
    "blockshock.training.captured": "needs a GPU: tests/phases/test_gpu_curves.py; over a fake, test_captured_steps.py",
    "blockshock.training.scaling": "takes no arguments: tests/training/test_scaling.py",
    "blockshock.training.sharded": "over several ranks: tests/nn/test_wrappers.py and tests/nn/test_checkpointing.py",
    "blockshock.nn.wrappers": "takes no arguments: tests/nn/test_wrappers.py",
    "blockshock.methods.dtensor": "the rival, torch's own: tests/methods/test_methods.py",
    "blockshock.phases": "run on ranks, with what the fuzzed options resolve to",
    "blockshock.plugin": "pytest calls them, with what the fuzzed options resolve to",
    "blockshock.registry.installed": "takes no arguments: tests/plugin/test_own_things.py",
    "blockshock.pruning.block_masks": "each by its name in a spec, in tests/kernels/test_fuzz_block_kernels.py",
    "blockshock.report.plots": "drawn of fuzzed runs by write_folder",
    "blockshock.report.render": "drawn of fuzzed runs by write_folder",
}
"""Modules, and packages with all that is in them; single names of them may be fuzzed nevertheless."""
ALSO_NOT = {
    "kernels.base.not_among": "asked of every kernel of both kinds",
    "kernels.backward.too_old": "takes a device alone",
    "kernels.backward.no_cuda": "takes no arguments",
    "kernels.formats.orders.steps_of": "of each K that the kernel wgmma packs: tests/kernels/test_wgmma.py",
    "kernels.cusparselt_anew.times_packed": "every recipe's sparse product goes through it; test_cusparselt_anew.py",
    "kernels.source.source_of": "takes names of this package's own files",
    "kernels.found.Searched": "all that it reads is damaged by tests/kernels/test_bsr.py and test_cusparselt.py",
    "kernels.dense.is_transposed": "two orders, each told from the other: tests/kernels/test_transposed.py",
    "kernels.gathered.is_faster_transposed": "where it holds: tests/kernels/test_transposed.py",
    "kernels.dense.multiplied": "every way to combine goes through it: tests/machine/test_combines.py",
    "kernels.layout.aligned_rows": "every x of the kernel streamed goes through it: tests/kernels/test_gpu_kernels.py",
    "kernels.layout.whole_numbers": "each layout, dtype and torch's graphs: tests/kernels/test_compiled_formats.py",
    "report.where.named": "called by where() for points that no range has",
    "measure.exact.Exact": "what compare() gives those beside it: tests/measure/test_quality.py",
    "measure.quality.Losing": "what lost() is made of; beside compare(): tests/measure/test_quality.py",
    "matrices.named_masks.two_largest": "called for every mask and pruner by magnitude",
    "matrices.named_masks.best_tiles": "called for every mask and pruner of tiles",
    "matrices.named_masks.untile": "the same",
    "pruning.alps.Alps": "drawn by its name in test_fuzz_layers.py",
    "pruning.as_mask.check_mask": "called for every spec of a mask",
    "pruning.as_mask.is_pruners": "called for every spec of a mask",
    "pruning.as_mask.mask_names": "takes no arguments",
    "pruning.as_mask.mask_of": "called for every layer with a mask; of pruners by tests/methods/test_first_half.py",
    "pruning.as_mask.typical_mask": "called for every layer whose kernel is looked for",
    "pruning.by_score.ByScore": "the base of pruners that are fuzzed",
    "pruning.by_score.largest": "called for every pruner by score",
    "pruning.hessian.hessian": "called for every pruner that weighs errors by it",
    "pruning.hessian.noise_share": "called by hessian()",
    "pruning.pruned.pruning_bytes": "called for every estimate of a pruned layer; tests/pruning/test_pruning_bytes.py",
    "pruning.ria.Ria": "drawn by its name in test_fuzz_layers.py",
    "pruning.ria.TileRia": "drawn by its name in test_fuzz_layers.py",
    "pruning.sparsegpt.SparseGpt": "drawn by its name in test_fuzz_layers.py",
    "pruning.sparsegpt.TileSparseGpt": "drawn by its name in test_fuzz_layers.py",
    "pruning.wanda.TileWanda": "drawn by its name in test_fuzz_layers.py",
    "pruning.wanda.Wanda": "drawn by its name in test_fuzz_layers.py",
    "report.growth.growth": "called by run_tables() for every run that is fuzzed",
    "report.growth.growth_in_ranks": "called by beside() for every run that is fuzzed",
    "report.ran.hardware_kind": "called by growth_in_ranks() for every run that is fuzzed",
    "methods.axes.all_axes": "takes no arguments",
    "methods.axes.axis_of": "called by every Case that is fuzzed",
    "methods.kinds.check_kinds": "called for the class of every method; words of all kinds in test_methods.py",
    "methods.permuted.order_bytes": "called for every estimate of a pruned layer",
    "methods.product.product": "every forward pass of test_fuzz_layers.py goes through it",
    "training.clipping.local_gradient": "called by clip_grad_norm_ for every gradient",
    "machine.collectives.global_ranks": "called by clip_grad_norm_ for every group",
    "methods.combined.Combined": "the base of methods that are fuzzed",
    "methods.jointly.Jointly": "as well; what it chooses: tests/methods/test_jointly.py",
    "kernels.auto.shape_of": "called for every layer whose kernel is auto",
    "machine.collectives.of_rank_0": "called for every layer that is built",
    "machine.memory.free_bytes": "takes a device alone",
    "machine.memory.release": "takes no arguments",
    "machine.memory.can_spare": "takes sizes and a device: tests/matrices/test_remembered.py",
    "machine.memory.drop_on_need": "takes a function: tests/matrices/test_remembered.py",
    "matrices.remembered.remember": "for each that is generated: tests/matrices/test_remembered.py",
    "matrices.remembered.remembered": "as well",
    "matrices.remembered.forget": "takes no arguments",
    "machine.memory.indexed": "takes a device alone",
    "matrices.sizes.check_size": "called for every weight",
    "matrices.saved_mask.faults_of_state": "called for every state that is loaded",
    "machine.memory.cache_bytes": "takes a device alone",
    "machine.memory.peak_bytes": "takes a device alone",
    "measure.accuracy.smallest": "called by compare() for every dtype",
    "measure.accuracy.ratio": "called for every Accuracy",
    "measure.accuracy.share": "called by compare() and lost()",
    "machine.capturing.is_capturing": "takes a device alone",
    "measure.stopwatch.Stopwatch": "of every curve: tests/phases/test_curves.py, test_gpu_curves.py",
    "measure.timing.capture": "needs a GPU",
    "measure.timing.median_seconds": "called by auto for every candidate",
    "measure.timing.medians": "of every setting of bsr: tests/kernels/test_bsr.py",
    "kernels.algorithm_cache.are_seconds": "called for all that the cache of auto holds",
    "measure.timing.warm_up": "needs a GPU",
    "measure.timing.check_durations": "called by slowest() for every series",
    "machine.turns.turn": "holds files that processes wait for: tests/machine/test_turns.py",
    "machine.turns.shared": "the same",
    "training.dense_storage.DenseStorage": "made by the methods of test_fuzz_layers.py",
    "machine.cache_folder.cache_folder": "takes no arguments",
    "matrices.blocks_of_rows.check_slice": "the check behind every rows() and columns()",
    "nn.old_names.know_old_names": "takes no arguments",
    "pruning.pruned.like": "called for every pruned layer whose kernel is looked for",
    "registry.brought": "reads what extend kept: tests/plugin/test_options.py",
    "registry.extend": "called for every file of --extend: tests/plugin/test_own_things.py",
    "registry.written.check_range": "the check behind every number in a spec",
    "registry.written.not_negative": "called for every --most-loss: tests/report/test_within.py",
    "phases.claims.claims": "made by cases.hypotheses",
    "phases.claims.network_claims": "made by cases.network_hypotheses",
    "matrices.masks.Complement": "made by complement()",
    "matrices.masks.Part": "made by part() and columns()",
    "matrices.masks.Transposed": "made by transposed()",
    "matrices.repeating_rows.Every": "a part of RowPatterns",
    "report.tables.footnotes": "called for every table that is shown",
    "nn.arguments.check_picks": "called by every BlockShockLinear that is fuzzed",
    "nn.arguments.check_options": "called by every BlockShockLinear that is fuzzed",
    "nn.ffn.SparseFFN": "by each recipe, of shapes of all kinds: tests/nn/test_ffn.py",
    "nn.layer_state.load_state": "called for every state that is loaded",
    "nn.layer_state.beside_weights": "called for every state that is saved",
    "models.base.Network": "the base of the networks",
    "models.base.check_width": "called by the networks that have a width",
    "models.compress.blocks_of": "called by compress()",
    "models.recording.Survey": "made by compress()",
    "models.byte_gpt.Block": "made by ByteGPT",
    "models.text.about_texts": "takes no arguments",
    "models.text.committed_text": "takes a name of ours",
    "models.text.loss": "called by bits()",
    "models.recording.arguments": "called by compress() for every call",
    "models.recording.record": "called by compress() for every block",
    "nn.replacing.linears_of": "called by replace_linears() for every model",
    "nn.replacing.passed_by": "called by replace_linears() and compress() for every layer",
    "nn.nested.is_nested": "called by every layer for x of most kinds: tests/nn/test_arguments.py",
    "nn.frozen_tensor.FrozenTensor": "what a layer shows of its weight: tests/nn/test_frozen_in_torch.py",
    "nn.nested.nested_rows": "what map_rows() and compress() see of a nested x: tests/nn/test_frozen_in_torch.py",
    "nn.nested.map_rows": "of nested x with rows and without: tests/nn/test_frozen_in_torch.py",
    "nn.whole_weight.keep_called": "called by every MethodLinear that is fuzzed",
    "nn.suitable.needs_inputs": "called by replace_linears() for every layer",
    "nn.suitable.ranks_for": "called by replace_linears()",
    "nn.arguments.check_widths": "called by SparseFFN on each wrong width of tests/nn/test_ffn.py",
    "nn.replacing.check_where": "called by replace_linears() and compress()",
    "nn.replacing.there_already": "called by replace_linears() and compress()",
    "nn.suitable.why_not": "called by replace_linears() for every layer",
    "nn.suitable.mask_axis": "called for every layer of own weights that is built",
    "nn.suitable.Settled": "made by settle()",
    "nn.suitable.settle": "called by every layer that is built",
    "nn.whole_weight.whole_bias": "over several ranks: tests/nn/test_method_linear.py",
    "nn.arguments.check_x": "called by every forward pass of one",
    "methods.product.check_once": "called by every backward pass of a layer",
    "stages.Recorder": "made by recording()",
    "training.storages.Storage": "the base of the storages that are fuzzed",
    "report.alike.least_losing": "called by answer() and verdict_table()",
    "report.alike.is_alike": "called by answer() and verdict_table()",
    "report.networks.speed": "called by answer() for every row of a network",
    "report.slower.slower": "called by --fail-if-slower on changes that across() shows",
    "report.slower.missing": "called by --fail-if-slower: tests/report/test_measured_alike.py",
    "report.across.other_rivals": "called by across()",
    "report.flat.print_rows": "prints rows(), which are",
    "matrices.weights.check_drawn": "called by Workload.inputs(), which is",
    "saved.how.ways_apart": "called by across()",
    "saved.how.ways": "called by across()",
    "report.across.unlike": "called by screen.of_runs()",
    "report.slower.failed": "what --fail-if-slower runs, on each fault: tests/report/test_across.py",
    "report.slower.unsure": "what --fail-if-slower runs, on each fault: tests/report/test_across.py",
    "report.slower.untold": "called by --fail-if-slower on changes that across() shows",
    "report.slower.surely": "called by --fail-if-slower on changes that across() shows",
    "report.across.changes": "called by across()",
    "report.ran.hardware": "called by answer()",
    "report.ran.important": "called by answer()",
    "report.ran.ran": "called by answer()",
    "report.ran.workloads": "called by answer()",
    "report.faulty.at": "called by answer() for every point that it names",
    "report.faulty.add_dense": "called by answer() and comparison() where nothing dense is beside a row",
    "report.faulty.unpaired": "called by answer()",
    "report.faulty.untimed": "called by answer()",
    "report.faulty.wrong_lines": "called by answer()",
    "report.within.within_lines": "called by answer()",
    "report.losing.lost": "called by answer()",
    "report.apart.told_apart": "called by of_runs(); of names of all kinds by tests/report/test_apart.py",
    "report.remarks.multiplies_zeros": "called by remarks() for every timed row",
    "report.remarks.left_out": "called by remarks()",
    "report.remarks.zeros": "called by remarks()",
    "report.screen.fitting": "takes a width alone",
    "report.points.pays": "called by answer() for every point",
    "report.fastest.fastest": "called by answer() and spreads() for every point",
    "report.fastest.known_losses": "as well, for all points at once",
    "report.asked.counted": "called by answer() and verdict_table()",
    "report.asked.median": "called by answer() and verdict_table()",
    "report.asked.spanned": "called by answer() and verdict_table()",
    "report.command.tables_of": "each kind of word that it takes: tests/report/test_screen.py",
    "report.command.report": "all that it calls is fuzzed; itself by tests/report/test_report.py",
    "report.comparison.by_loss": "called for every row that was checked",
    "report.verdicts.explained": "called by verdict_table()",
    "report.verdicts.in_words": "called by verdict_table() for every verdict",
    "report.verdicts.over": "called by verdict_table() for every verdict on a network",
    "report.verdicts.verdicts": "called by comparison() for every verdict",
    "report.command.sections": "called by report() of every run",
    "report.comparison.same_bits": "called for every row that was checked",
    "saved.fits.number_or_none": "called by unfit() for every row",
    "saved.fits.series_of": "called by unfit() for every row",
    "saved.journal.hold": "called by every session",
    "saved.journal.all_unfinished": "called by unfinished_below()",
    "saved.journal.read_session": "called by read_journal()",
    "saved.recovering.recovered": "called by `python -m blockshock recover`",
    "saved.recovering.is_running": "called by `python -m blockshock recover`",
    "saved.recovering.note_saved": "called by every session that saves its run",
    "saved.journal.next_journal": "called by every session",
    "saved.journal.next_run": "called by recover()",
    "saved.journal.write_whole": "called by recover()",
    "report.folder.chapter": "called for every run of write_folder",
    "report.page.merged": "called for every run of write_folder",
    "report.page.slimmed": "called for every table of a page",
    "report.page.table_of": "called for every table of a page",
    "saved.odd.odd": "called on every result that is left out",
    "saved.schema.needed": "called by unfit() for every row",
    "saved.judged.in_formats_alone": "called by answer() for every point",
    "saved.judged.weights_of": "called by discredited() for every row",
    "saved.parts.joined": "called by read_run() of folders: tests/saved/test_parts.py",
    "saved.losses.loss_of": "called by comparison() for every verdict on a network",
    "saved.run.shown": "called by differences()",
    "saved.words.several": "takes a count and its words: every sentence of a report",
    "saved.settle.bare": "called by settled() for every row",
    "saved.settle.is_timed": "called by settled() for every row",
    "report.models.model_lines": "called by answer()",
    "report.networks.places": "called by network_tables()",
    "report.learning.beside": "called by learning_tables() for every row",
    "report.learning.learning_lines": "called by answer()",
    "report.learning.learning_tables": "called by run_tables() for every run that is fuzzed",
    "report.networks.beside": "called by network_tables() for every row",
    "report.networks.network_lines": "called by answer()",
    "report.networks.network_tables": "called by run_tables() for every run that is fuzzed",
    "report.points.Ratios": "made by every table of times",
    "report.points.best_names": "called by every_row()",
    "report.points.pairs": "called by every_row()",
    "report.points.place_of": "called by every_row() for every row",
    "report.points.use_of": "called by every_row() for every row",
    "report.where.where": "of any points by tests/report/test_where.py; called by answer()",
    "report.run_tables.short_name": "called for every row that was profiled",
    "report.ending.print_ending": "print_tables on comparison, both fuzzed, and what report() prints",
    "machine.cuda_kernel.CudaKernel": "of a driver that reads what it is given: tests/kernels/test_streamed.py",
    "machine.cuda_kernel.early_launch_of": "the same: tests/machine/test_cuda_kernel.py",
    "methods.product.check_untransformed": "called by every product, forward and backward: tests/nn/test_transforms.py",
    "methods.product.check_untangent": "called by every product in forward mode: tests/nn/test_transforms.py",
    "methods.product.without_checks": "called once for a product, and once for that of joined halves",
    "stages.in_stage": "called by every small layer on a CPU; of what is recorded in it by tests/test_stages.py",
    "training.together.Together": "followed and looked at by every small layer on a CPU: tests/nn/test_joined.py",
    "methods.product.sum_of_products": "called by product() and block_shock: every layer",
    "matrices.columns_of_halves.ColumnsOfHalves": "all that it takes: tests/matrices/test_columns_of_halves.py",
    "matrices.repeating_rows.fits_words": "called for every large matrix whose columns are taken or put together",
    "nn.arguments.takes_as_it_is": "called by every MethodLinear for every x",
    "training.steps.follow": "called by every storage",
    "training.steps.prepare": "called by every storage of a recipe",
    "training.steps.replace": "called by every BlockShockLinear",
    "training.elementwise.check_parts": "called by check_elementwise()",
    "training.group_options.keep_options": "of states over several ranks: tests/nn/test_checkpointing.py",
    "training.steps.links_of": "called by check_elementwise(); of lists that change by tests/training/test_steps.py",
    "kernels.formats.base.Stored": "made by every format that is fuzzed",
    "kernels.formats.fp8.Floats": "the base of formats that are fuzzed",
    "kernels.formats.fp8_e5m2.E5m2": "what fp8_e5m2 and a Sparse24 store W in: tests/kernels/test_fuzz_formats.py",
    "training.sparse.groups.check_dense": "on what is none, by each function: tests/training/test_sparse_masks.py",
    "training.sparse.groups.check_matrix": "the check of Sparse24",
    "training.sparse.groups.in_fours": "the check behind every function of the toolkit",
    "training.steps.part_of": "called by check_elementwise() for every part",
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
        return last.endswith(("_mask", "_loss")) and module in ("matrices.named_masks", "phases.backward")
    own = [key for key, held in vars(value).items() if inspect.isfunction(held) and not key.startswith("_")]
    registries = ("matrices.workloads", "training.optimizers", "training.sparse_storages", "pruning.by_mask")
    registered = module in registries or module.startswith(("kernels.", "methods.", "pruning.weight"))
    return not own or registered or issubclass(value, Exception) or getattr(value, "_is_protocol", False)


def test_every_public_function_is_fuzzed_or_excused() -> None:
    called = set().union(*map(names_in, HERE.rglob("test_fuzz_*.py")))
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
