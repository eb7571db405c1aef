"""SparseFFN: what its activations and gradients are by definition, and what a user's model does with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product as every
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_cusparselt import compress, faked
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from blockshock import MethodLinear, SparseFFN, replace_linears
from blockshock.errors import InputError, UnknownName
from blockshock.kernels import blocks24, gradient24, make24
from blockshock.kernels.gradient24 import Beside
from blockshock.kernels.make24 import Made, Making
from blockshock.matrices import best_tiles, transposable_tiles
from blockshock.ranks import Ranks
from blockshock.training.sparse import bits_of_mask, mask_24, mask_of_bits

D, H = 32, 256
ACTS = {"gelu": F.gelu, "relu": F.relu, "relu2": lambda z: F.relu(z).square()}
TILES = [
    f"activation:where={where}:gradient={gradient}:act={act}"
    for where, gradient, act in every(("pre", "post"), ("sp24", "dense", "ste"), ACTS)
]
SOME = ("activation", "activation:where=post:act=gelu", "activation:gradient=ste", "activation:masks=rows", "dropout24")


def built(recipe: str, dtype: torch.dtype = torch.float32) -> SparseFFN:
    torch.manual_seed(0)
    return SparseFFN(D, H, recipe).to(dtype)


def drawn(tokens: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def best_tile(worth_BH: torch.Tensor) -> torch.Tensor:
    """Of each 4 × 4 what the best of the 90 tiles keeps, one after the other."""
    mask, tiles = torch.zeros_like(worth_BH, dtype=torch.bool), transposable_tiles(worth_BH.device)
    for row, column in every(range(0, len(worth_BH), 4), range(0, worth_BH.shape[1], 4)):
        tile = worth_BH[row : row + 4, column : column + 4]
        mask[row : row + 4, column : column + 4] = max(tiles, key=lambda one: (tile * one).sum().item())
    return mask


def by_definition(ffn: SparseFFN, x: torch.Tensor, where: str, gradient: str, act: str, rows: bool) -> torch.Tensor:
    """The output, whose gradients torch finds; of masks that are constants, or of which it sees nothing."""

    def thin(values: torch.Tensor) -> torch.Tensor:
        worth = values.detach() if where == "pre" and act != "gelu" else values.detach().abs()
        if rows:
            fours = worth.unflatten(1, (-1, 4))
            mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(2, fours.topk(2).indices, True).flatten(1)
        else:
            mask = best_tile(worth)
        return values + (values * mask - values).detach() if gradient == "ste" else values * mask

    z, f = F.linear(x, ffn.fc1.weight, ffn.fc1.bias), ACTS[act]
    return F.linear(f(thin(z)) if where == "pre" else thin(f(z)), ffn.fc2.weight, ffn.fc2.bias)


def gradients(y: torch.Tensor, ffn: SparseFFN, x: torch.Tensor) -> list[torch.Tensor]:
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *ffn.parameters()], grad)]


@pytest.mark.parametrize("recipe", TILES)
def test_outputs_and_gradients_are_those_of_its_definition(recipe: str) -> None:
    ffn, x = built(recipe, torch.float64), drawn(16, dtype=torch.float64).requires_grad_()
    _, where, gradient, act = (part.partition("=")[2] for part in recipe.split(":"))
    right = gradients(by_definition(ffn, x, where, gradient, act, rows=False), ffn, x)
    torch.testing.assert_close(gradients(ffn(x), ffn, x), right)


@pytest.mark.parametrize("where", ["pre", "post"])
def test_masks_of_rows_are_exact_where_products_over_tokens_are_dense(where: str) -> None:
    ffn, x = built(f"activation:where={where}:masks=rows:dense=1.0", torch.float64), drawn(15, dtype=torch.float64)
    x.requires_grad_()
    right = gradients(by_definition(ffn, x, where, "sp24", "relu2", rows=True), ffn, x)
    torch.testing.assert_close(gradients(ffn(x), ffn, x), right)


def test_the_features_with_most_zeros_are_thinned_along_tokens_and_the_others_are_not() -> None:
    ffn, x = built("activation:masks=rows:dense=0.5", torch.float64), drawn(16, dtype=torch.float64)
    taken: list[torch.Tensor] = []
    ffn.recipe.thinned = lambda z, training: taken.append(type(ffn.recipe).thinned(ffn.recipe, z, training)) or taken[0]  # type: ignore[method-assign]
    y = ffn(x)
    grad = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, ffn.fc2.weight, grad)
    (a,) = taken
    exact, errors = grad.T @ a.detach(), []
    thin = a.detach().T.unflatten(1, (-1, 4))
    kept = torch.zeros_like(thin).scatter_(2, thin.abs().topk(2).indices, 1.0)
    thinned = grad.T @ (thin * kept).flatten(1).T
    nonzero = (a != 0).sum(0)
    for feature in range(H):
        column = found[:, feature]
        is_exact, is_thin = (torch.allclose(column, one[:, feature]) for one in (exact, thinned))
        assert is_exact or is_thin
        if not is_exact:
            errors.append(feature)
    dense = [feature for feature in range(H) if feature not in errors]
    assert len(errors) <= H // 2
    assert max(nonzero[errors]) <= nonzero.sort().values[H // 2 - 1]
    assert dense


def test_both_products_over_tokens_thin_the_same_features() -> None:
    """Also where most tokens have no gradient, so that most of ∇z is zero."""
    ffn, x = built("activation:masks=rows:dense=0.5", torch.float64), drawn(32, dtype=torch.float64)
    z = F.linear(x, ffn.fc1.weight, ffn.fc1.bias)
    a = ffn.recipe.thinned(z, True)
    grad = torch.randn(32, D, dtype=torch.float64)
    grad[4:] = 0
    (found,) = torch.autograd.grad(ffn(x), ffn.fc1.weight, grad)
    exact = (grad @ ffn.fc2.weight * (a != 0) * 2 * z.relu()).T @ x
    order = (a != 0).sum(0).argsort(stable=True)
    torch.testing.assert_close(found[order[H // 2 :]], exact[order[H // 2 :]])
    assert not torch.allclose(found[order[: H // 2]], exact[order[: H // 2]])


def test_tiles_make_tokens_depend_on_each_other_and_rows_do_not_as_the_page_says() -> None:
    for masks, alone in (("tile", False), ("rows", True)):
        for where in ("pre", "post"):
            ffn, x = built(f"activation:where={where}:masks={masks}", torch.float64).eval(), drawn(8).double()
            later = torch.cat([x[:6], drawn(2, seed=2).double()])
            unchanged = (ffn(x)[:6] == ffn(later)[:6]).all(1)
            assert unchanged.tolist() == [True] * 4 + [alone] * 2
            assert torch.allclose(ffn(x[4:5]), ffn(x)[4:5]) == alone


def test_straight_through_is_no_other_gradient_where_dropped_features_have_no_slope_as_the_page_says() -> None:
    for where, act in every(("pre", "post"), ACTS):
        found = []
        for gradient in ("dense", "ste"):
            ffn = built(f"activation:where={where}:act={act}:gradient={gradient}", torch.float64)
            x = drawn(16, dtype=torch.float64).requires_grad_()
            found.append(gradients(ffn(x), ffn, x))
        alike = all(map(torch.equal, *found))
        assert alike == (where == "pre" and act != "gelu"), (where, act)


@pytest.mark.parametrize("recipe", SOME)
@pytest.mark.parametrize("tokens", [0, 1, 7, 34])
def test_any_number_of_tokens_in_any_shape(recipe: str, tokens: int) -> None:
    ffn, x = built(recipe), drawn(2 * tokens).view(tokens, 2, D).requires_grad_()
    y = ffn(x)
    y.sum().backward()
    assert (y.shape, x.grad.shape) == (x.shape, x.shape)  # type: ignore[union-attr]
    assert all(parameter.grad.isfinite().all() for parameter in ffn.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("recipe", SOME)
def test_the_sparse_cores_give_what_zeros_give(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ffn, x = built(recipe, torch.bfloat16), drawn(24, dtype=torch.bfloat16).requires_grad_()
    torch.manual_seed(5)
    right = gradients(ffn(x), ffn, x)
    packed: list[tuple[int, ...]] = []
    with faked():
        monkeypatch.setattr(torch, "_cslt_compress", lambda w: packed.append(tuple(w.shape)) or compress(w))
        torch.manual_seed(5)
        found = gradients(ffn(x), ffn, x)
    along, across = (32, H), (H, 32)  # 24 tokens are filled up
    sparse_back = "gradient=ste" not in recipe
    assert sorted(packed) == sorted([along, across] * (2 if sparse_back else 1))
    torch.testing.assert_close(found, right, rtol=0.05, atol=0.05)


def _in_one_pass(
    x: torch.Tensor,
    making: Making,
    mask: torch.Tensor | None = None,
    z_RC: torch.Tensor | None = None,
    with_sums: bool = False,
    with_counts: bool = False,
    others: torch.Tensor | None = None,
) -> Made:
    """What our kernel makes, in plain torch; packed as the library over which products are faked has it."""
    assert not any(size % 64 for size in x.shape)
    given, act, dense = x, ACTS.get(making.activation, torch.clone), None
    if z_RC is not None:
        z_RC = z_RC.detach().requires_grad_()
        with torch.enable_grad():
            (value,) = torch.autograd.grad(act(z_RC), z_RC, x)
        given = z_RC.detach()
    else:
        value = act(x)
    if making.choice != "given":
        worth = value if making.first else x
        worth = worth.double() - worth.double().min() if making.choice == "largest" else worth.abs()
        best = best_tiles(worth) if making.along == "tiles" else mask_24(worth, signed=True)
        mask = bits_of_mask(best)
    assert mask is not None
    kept = value.where(mask_of_bits(mask), 0)
    over_tokens = kept if making.along == "tiles" else kept.where(mask_24(kept, 0), 0)
    sums, counts = (
        values.float().unflatten(0, (-1, 64)).sum(1) if asked else None
        for values, asked in ((kept, with_sums), (kept != 0, with_counts))
    )
    if others is not None:
        dense = torch.stack([kept[:, others].T, act(given).where(mask_of_bits(mask), 0)[:, others].T])
    return Made(compress(kept), compress(over_tokens.T.contiguous()), mask, sums, counts, dense)


def _back_in_one_pass(
    grad_RC: torch.Tensor,
    z_RC: torch.Tensor,
    mask: torch.Tensor,
    making: Making,
    straight: bool = False,
    with_sums: bool = False,
    others: torch.Tensor | None = None,
) -> Beside:
    """What our kernel does with a gradient that stays dense, in plain torch."""
    act, kept = ACTS[making.activation], mask_of_bits(mask)
    met = (z_RC.where(kept, 0) if straight and not making.first else z_RC).detach().requires_grad_()
    with torch.enable_grad():
        (value,) = torch.autograd.grad(act(met), met, grad_RC)
    grad_RC.copy_(value if straight else value.where(kept, 0))
    sums = grad_RC.float().unflatten(0, (-1, 64)).sum(1) if with_sums else None
    return Beside(sums, None if others is None else act(z_RC).where(kept, 0)[:, others].T.contiguous())


@pytest.mark.parametrize(
    ("recipe", "tokens", "choice"),
    [
        *(
            (f"activation:where={where}:gradient={gradient}:act={act}:masks={masks}", 40, "largest_size")
            for where, act in (("pre", "gelu"), ("post", "relu2"))
            for gradient, masks in every(("dense", "ste"), ("tile", "rows"))
        ),
        ("activation:gradient=dense", 128, "largest"),
        ("activation:gradient=ste:act=relu", 64, "largest"),
        ("activation:masks=rows:dense=0.5:gradient=dense", 64, "largest"),
        ("activation:masks=rows:dense=0.5:gradient=ste:act=gelu:where=post", 128, "largest_size"),
        ("activation:masks=rows:dense=1.0:gradient=dense:act=relu", 40, "largest"),
        ("activation", 64, "largest"),
        ("activation:act=relu:where=post", 40, "largest_size"),
        ("activation:act=gelu", 128, "largest_size"),
        ("activation:act=gelu:where=post", 64, "largest_size"),
        ("activation:masks=rows", 40, "largest"),
        ("activation:masks=rows:dense=0.5", 64, "largest"),
        ("activation:masks=rows:dense=0.5:act=gelu:where=post", 128, "largest_size"),
        ("activation:masks=rows:dense=1.0:act=relu", 40, "largest"),
        ("dropout24", 64, "given"),
        ("dropout24:act=relu2", 128, "given"),
    ],
)
def test_in_one_pass_it_gives_what_zeros_give(
    recipe: str, tokens: int, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ffn, x = built(recipe, torch.bfloat16), drawn(tokens, dtype=torch.bfloat16).requires_grad_()
    torch.manual_seed(5)
    right = gradients(ffn(x), ffn, x)
    made: list[str] = []
    with faked():
        monkeypatch.setattr(blocks24, "unavailable", lambda x: None)
        monkeypatch.setattr(
            make24, "make24", lambda *given, **z: made.append(given[1].choice) or _in_one_pass(*given, **z)
        )
        monkeypatch.setattr(gradient24, "gradient24_", lambda *given: made.append("dense") or _back_in_one_pass(*given))
        torch.manual_seed(5)
        found = gradients(ffn(x), ffn, x)
        torch.manual_seed(5)
        with torch.no_grad():
            torch.testing.assert_close(ffn(x), found[0], rtol=0, atol=0)
    assert made == [choice, "dense" if ffn.recipe.gradient != "sp24" else "given", choice]
    torch.testing.assert_close(found, right, rtol=0.05, atol=0.05)


def test_its_state_is_that_of_two_linears() -> None:
    plain = nn.ModuleDict({"fc1": nn.Linear(D, H), "fc2": nn.Linear(H, D)})
    plain.load_state_dict(built("activation").state_dict())
    fc1, fc2 = plain["fc1"], plain["fc2"]
    assert isinstance(fc1, nn.Linear)
    assert isinstance(fc2, nn.Linear)
    ffn = SparseFFN.of(fc1, fc2, "dropout24:act=relu").eval()
    assert ffn.fc1.weight is fc1.weight
    assert torch.equal(ffn(drawn(5)), fc2(fc1(drawn(5)).relu()))
    ffn.load_state_dict(plain.state_dict())


def test_its_state_says_its_activation_function_and_no_other_block_loads_it(tmp_path: Path) -> None:
    model, state = nn.Sequential(nn.Linear(4, D), built("activation:act=relu")), tmp_path / "state.pt"
    torch.save(model.state_dict(), state)
    loaded = torch.load(state, weights_only=True)
    assert loaded.keys() == {f"{name}.{of}" for name in ("0", "1.fc1", "1.fc2") for of in ("weight", "bias")}
    others = [nn.Sequential(nn.Linear(4, D), built(f"{name}:act=gelu")) for name in ("activation", "dropout24")]
    for other in others:
        for strict in True, False:
            with pytest.raises(
                RuntimeError, match=r"1\.fc1 and fc2 are of a SparseFFN with act=relu, and here it is act=gelu"
            ):
                other.load_state_dict(loaded, strict=strict)
        other.load_state_dict(dict(loaded))
        assert torch.equal(other[1].fc2.weight, model[1].fc2.weight)
    same = nn.Sequential(nn.Linear(4, D), built("dropout24:act=relu"))
    same.load_state_dict(loaded)
    same.load_state_dict(copy.deepcopy(same).state_dict())


def test_dropout_is_on_average_what_is_evaluated_and_a_seed_makes_its_bits() -> None:
    ffn, x = built("dropout24:act=relu"), drawn(8)
    with torch.no_grad():
        torch.manual_seed(2)
        draws = torch.stack([ffn(x) for _ in range(400)])
        torch.manual_seed(2)
        assert torch.equal(ffn(x), draws[0])
        mean, spread = draws.mean(0), draws.std(0) / 20
        assert ((mean - ffn.eval()(x)).abs() < 5 * spread).all()
        assert draws.std(0).min() > 0


@pytest.mark.parametrize("recipe", SOME)
def test_autocast_and_checkpointing_change_nothing(recipe: str) -> None:
    found = []
    for recompute in (False, True):
        ffn = built(recipe)
        x = drawn(16).requires_grad_()
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.bfloat16):
            y = checkpoint(ffn, x, use_reentrant=False) if recompute else ffn(x)
            assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        found.append([x.grad, *(parameter.grad for parameter in ffn.parameters())])
        assert {grad.dtype for grad in found[-1]} == {torch.float32}
    assert all(map(torch.equal, *found))


def test_compiled_it_gives_what_it_gives() -> None:
    x = drawn(16).requires_grad_()
    for recipe in ("activation", "dropout24"):
        torch._dynamo.reset()
        ffn = built(recipe)
        compiled = torch.compile(ffn, fullgraph=True, backend="aot_eager")
        found = gradients(compiled(x), ffn, x)
        if recipe == "activation":
            torch.testing.assert_close(found, gradients(ffn(x), ffn, x))
        assert all(one.isfinite().all() for one in found)  # dropout draws from the compiler's generator


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a:UserWarning")  # which holds for a device as it is
@pytest.mark.parametrize("masks", ["tile", "rows"])
def test_compiled_for_any_number_of_tokens_it_gives_what_it_gives(masks: str) -> None:
    torch._dynamo.reset()
    ffn = built(f"activation:masks={masks}")
    compiled = torch.compile(ffn, dynamic=True, backend="eager")
    for tokens in (8, 12):
        x = drawn(tokens).requires_grad_()
        torch.testing.assert_close(gradients(compiled(x), ffn, x), gradients(ffn(x), ffn, x))


def _on_replicas() -> list[list[torch.Tensor]]:
    states = []
    for recipe in SOME:
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Sequential(SparseFFN(D, H, recipe)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        torch.manual_seed(dist.get_rank())
        for step in range(3):
            x = drawn(12, seed=2 * step + dist.get_rank())
            optimizer.zero_grad()
            (model(x) - x).square().mean().backward()
            optimizer.step()
        states.append(list(model.state_dict().values()))
    return states


def test_replicas_have_the_same_bits(cpu_ranks: Ranks) -> None:
    for one, other in zip(*cpu_ranks.run(_on_replicas), strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("recipe", SOME)
def test_it_learns_and_a_copy_learns_alike(recipe: str) -> None:
    ffn, x = built(recipe), drawn(64)
    other = copy.deepcopy(ffn)
    losses = []
    for trained in (ffn, other):
        torch.manual_seed(6)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=0.01)
        for _ in range(30):
            loss = (trained(x) - x.flip(1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:30] == losses[30:]
    assert losses[29] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("recipe", "hidden", "says"),
    [
        ("activation:where=before", H, "where is one of pre, post, got where=before"),
        ("activation:gradient=sparse", H, "gradient is one of sp24, dense, ste"),
        ("activation:act=silu", H, "act is one of gelu, relu, relu2"),
        ("activation:masks=tiles", H, "masks is one of tile, rows"),
        ("activation:dense=2", H, "dense must lie in 0 … 1"),
        ("dropout24:act=tanh", H, "act is one of"),
        ("dropout", H, "Did you mean 'dropout24'"),
        ("fst", H, r"no block recipe is named 'fst', but a recipe is.*replace_linears\(model, 'recipe-fst'\)"),
        ("activation", 30, "it must be a multiple of 4, got 30"),
    ],
)
def test_what_it_cannot_be_is_said(recipe: str, hidden: int, says: str) -> None:
    with pytest.raises((InputError, UnknownName), match=says):
        SparseFFN(D, hidden, recipe)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"d": 0}, "d must lie in 1 … .*, got d=0"),
        ({"d": 8.0}, r"d= takes a whole number of features, got 8\.0"),
        ({"d": None}, "d= takes a whole number of features, got None"),
        ({"hidden": 0}, "hidden must lie in 1 … .*, got hidden=0"),
        ({"hidden": -8}, "hidden must lie in 1"),
        ({"hidden": "8"}, "hidden= takes a whole number of features, got '8'"),
        ({"recipe": None}, "a block recipe is picked by its name, got None. Choices: activation, dropout24"),
        ({"dtype": "bf16"}, "dtype= takes a floating-point dtype"),
        ({"dtype": torch.int8}, "dtype= takes a floating-point dtype"),
    ],
)
def test_what_is_no_size_name_or_dtype_is_refused_before_anything_is_made(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        SparseFFN(**{"d": 8, "hidden": 8} | wrong)


def test_what_is_no_pair_of_linears_or_no_input_is_refused() -> None:
    with pytest.raises(InputError, match="fc1 has 8 outputs and fc2 12 inputs"):
        SparseFFN.of(nn.Linear(4, 8), nn.Linear(12, 4))
    with pytest.raises(InputError, match=r"fc2 must be an nn\.Linear, got Identity"):
        SparseFFN.of(nn.Linear(4, 8), nn.Identity())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"x must be \(…, 32\), got \(3, 31\)"):
        built("activation")(torch.zeros(3, 31))
    with pytest.raises(InputError, match="x must be a tensor, got list"):
        built("activation")([0.0])  # type: ignore[arg-type]
    none = nn.Linear(4, 8)
    none.in_features = 0
    with pytest.raises(InputError, match="got d=0"):
        SparseFFN.of(none, nn.Linear(8, 4))


def _hooked() -> nn.Linear:
    linear = nn.Linear(8, 16)
    linear.register_forward_hook(lambda *_: None)
    return linear


def _adapted() -> nn.Linear:
    linear = nn.Linear(8, 16)
    plain = linear.forward
    linear.forward = lambda input: plain(input) + 1  # type: ignore[method-assign]
    return linear


MORE: list[tuple[Callable[[], nn.Linear], str]] = [
    (lambda: nn.utils.spectral_norm(nn.Linear(8, 16)), r"remove_spectral_norm\(linear\)"),
    (lambda: nn.utils.prune.l1_unstructured(nn.Linear(8, 16), "weight", 0.5), r"prune\.remove\(linear, 'weight'\)"),
    (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(8, 16)), "fc1 must be an nn.Linear, got Parametrized"),
    (_adapted, "has a forward of its own, which a SparseFFN would drop"),
    (_hooked, r"fc1 has hooks \(forward_hooks\) and is never called: set them on the block"),
]


@pytest.mark.parametrize(("made", "says"), MORE)
def test_what_computes_or_sees_more_than_a_linear_is_refused(made: Callable[[], nn.Linear], says: str) -> None:
    """The block multiplies by its weight alone."""
    with pytest.raises(InputError, match=says):
        SparseFFN.of(made(), nn.Linear(16, 8))


def test_tied_and_watched_parameters_are_taken_over_as_they_are() -> None:
    first, second, seen = nn.Linear(8, 16), nn.Linear(16, 8, bias=False), list[int]()
    embedding = nn.Embedding(8, 16)
    second.weight = nn.Parameter(embedding.weight.detach())
    embedding.weight = second.weight
    first.weight.register_post_accumulate_grad_hook(lambda _: seen.append(1))
    ffn = SparseFFN.of(first, second)
    ffn(torch.randn(4, 8)).sum().backward()
    assert ffn.fc2.weight is embedding.weight
    assert seen == [1]


@pytest.mark.parametrize("call", [replace_linears, lambda model, row: MethodLinear(model[0], row)])
def test_a_recipe_of_blocks_where_a_layer_takes_one_is_told_what_takes_it(call: Callable[..., Any]) -> None:
    taken = r"SparseFFN\.of\(fc1, fc2, 'activation:masks=rows'\)$"
    with pytest.raises(UnknownName, match=f"no recipe is named 'activation', but a block recipe is.*{taken}"):
        call(nn.Sequential(nn.Linear(4, 4)), "recipe-activation:masks=rows")
    with pytest.raises(UnknownName, match=r"Choices: dense, .*supermask$"):
        call(nn.Sequential(nn.Linear(4, 4)), "recipe-active")


@pytest.mark.parametrize("recipe", ["activation", "dropout24"])
def test_an_x_of_another_dtype_is_refused_as_a_linear_refuses_it(recipe: str) -> None:
    ffn = built(recipe)
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        with pytest.raises(InputError, match=f"x is {dtype} and the weight of fc1 torch.float32: cast one of them"):
            ffn(torch.ones(4, D, dtype=dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert ffn(torch.ones(4, D, dtype=torch.float16)).dtype == torch.bfloat16
        with pytest.raises(InputError, match=r"must be of floating-point numbers, got torch\.int64"):
            ffn(torch.ones(4, D, dtype=torch.int64))
    ffn.fc2.bfloat16()
    with pytest.raises(InputError, match=r"x is torch\.float32 and the weight of fc2 torch\.bfloat16"):
        ffn(drawn(4))
