"""The questions that the suite is asked to decide, each about a row of the grids and a rival at the same point."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from blockshock.errors import InputError
from blockshock.methods import METHODS, Method, Promise, Role, Span, method_of
from blockshock.registry import Registry, parse_spec


@dataclass(frozen=True)
class BestOf:
    """Of all methods of a role, by default the dense alternatives, the fastest: which that is changes with the point.

    Attributes:
        span: of those that run on that, if on any.
        promise: of those that keep it.
    """

    role: Role = Role.RIVAL
    span: Span | None = None
    promise: Promise = Promise.DENSE

    def __str__(self) -> str:
        kind = "dense one" if self.promise is Promise.DENSE else f"{self.role} ({self.promise})"
        return f"the best {kind}{' on one device' if self.span is Span.ONE else ''}"

    def names(self) -> tuple[str, ...]:
        """The methods, of those that are registered by now."""
        return tuple(name for name in METHODS.names() if self._has(METHODS.get(name)))

    def specs(self, asked: Iterable[str]) -> tuple[str, ...]:
        """The same, and of the specs that are asked for those of such methods, with parameters of their own."""
        return tuple(dict.fromkeys([*self.names(), *(spec for spec in asked if self._has(method_of(spec)[0]))]))

    def _has(self, kind: type[Method]) -> bool:
        return (kind.role, kind.promise) == (self.role, self.promise) and self.span in (None, kind.span)


best_of = BestOf


def alternatives(method: str) -> tuple[str, ...]:
    """The dense alternatives that rows of this method, a spec, are set beside: of one device those of one device."""
    kind = method_of(method)[0]
    dense = (kind.role, kind.promise) == (Role.RIVAL, Promise.DENSE)
    beside = best_of(span=Span.ONE if kind.span is Span.ONE and not dense else None)
    return tuple(name for name in beside.names() if METHODS.get(name) is not kind)


NETWORK = "dense_single"
"""The label of the row that is a network, or a block, as it is; in a format it is another."""
LAYERS, NETWORKS, BLOCKS = "layers", "networks", "blocks"
"""What hypotheses are about."""


class Hypothesis:
    """A claim that one method is faster than another, forward or over a training step.

    A subclass says in its docstring what a ratio below one means, and

    Attributes:
        subject: what it is about: a method's name, or which methods.
        rivals: a method's name, or ``best_of`` several.
        passes: what pairs are timed of, ``forward`` or ``training``. With both, the ratio is that of the forward ratio
            over the training one. Of ``network`` it is a pass's time over that of one which gained half of what its
            layers alone gain over the network as it is (``saved.pairs.half_gained``). ``ffn`` is forward and backward
            of a feed-forward block, with what keeps it 2:4.
        sharing: axes of which its rows have a pick, and its rivals the same one.
        statement: what its docstring says, as the middle of a sentence.
    """

    subject: ClassVar[str | Callable[[type[Method]], bool]]
    rivals: ClassVar[str | BestOf]
    passes: ClassVar[tuple[str, ...]] = ("forward",)
    sharing: ClassVar[tuple[str, ...]] = ()
    statement: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Raises InputError if it does not say all that it must."""
        said = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ").removesuffix(".")
        if not said:
            raise InputError(f"{cls.__name__} has no docstring: let it say what a ratio below one means")
        for name in ("subject", "rivals"):
            if not hasattr(cls, name):
                raise InputError(f"{cls.__name__} has no {name}: name a method, or say which ones")
        if not isinstance(cls.rivals, str | BestOf):
            raise InputError(f"{cls.__name__}: rivals are a method's name or best_of(…), got {cls.rivals!r}")
        if cls.passes not in (("forward",), ("training",), ("forward", "training"), ("network",), ("ffn",)):
            raise InputError(
                f"{cls.__name__}: passes are ('forward',), ('training',) or both, or ('network',), or ('ffn',), got "
                f"{cls.passes!r}"
            )
        if cls.about() != LAYERS and cls.rivals != NETWORK:
            raise InputError(
                f"{cls.__name__}: of {cls.passes} the rival is {NETWORK!r}, the network or block as it is, got "
                f"{cls.rivals!r}"
            )
        cls.statement = said[0].lower() + said[1:]

    @classmethod
    def concerns(cls, method: str) -> bool:
        """Whether it is about rows of this method, a spec. Raises UnknownName if its subject is no method."""
        if isinstance(cls.subject, str):
            METHODS.get(cls.subject)  # one that is misspelt would be about nothing, and say so nowhere
            return parse_spec(method)[0] == cls.subject
        return cls.subject(method_of(method)[0])

    @classmethod
    def training(cls) -> bool:
        """Whether it is about cases that are trained."""
        return "training" in cls.passes

    @classmethod
    def about(cls) -> str:
        """Of what its rows are: of layers, of whole networks, or of feed-forward blocks."""
        if cls.passes == ("network",):
            return NETWORKS
        return BLOCKS if cls.passes == ("ffn",) else LAYERS


def asked_about(kind: type[Method]) -> bool:
    """Whether a method is one that anything is asked about."""
    return kind.role is Role.SUBJECT


HYPOTHESES: Registry[type[Hypothesis]] = Registry("hypothesis")


@HYPOTHESES.register("H1")
class FasterThanDense(Hypothesis):
    """Forward, it is faster than the best dense alternative on these GPUs."""

    subject, rivals = "block_shock", best_of()


@HYPOTHESES.register("H2")
class WorseInTraining(Hypothesis):
    """It stands worse against tensor parallelism in training than forward."""

    subject, rivals, passes = "block_shock", "dense_tp_row", ("forward", "training")


@HYPOTHESES.register("H3")
class ZerosAreSkipped(Hypothesis):
    """Forward, it is faster than the ablation that multiplies the zeros."""

    subject, rivals = "block_shock", "masked_split_dense"


@HYPOTHESES.register("H4")
class FasterThanOne(Hypothesis):
    """Forward, it is faster than one dense GPU."""

    subject, rivals = "block_shock", "dense_single"


@HYPOTHESES.register("H5")
class FasterStep(Hypothesis):
    """A training step is faster than the best dense alternative's."""

    subject, rivals, passes = "block_shock", best_of(), ("training",)


@HYPOTHESES.register("H6")
class PrunedPays(Hypothesis):
    """A pruned layer is faster than the dense one on one GPU."""

    subject, rivals = "pruned", best_of(span=Span.ONE)


@HYPOTHESES.register("H7")
class PrunedPaysInFewBits(Hypothesis):
    """A pruned layer in a format is faster than the dense one in that format on one GPU."""

    subject, rivals, sharing = "pruned", best_of(span=Span.ONE), ("format",)


@HYPOTHESES.register("H8")
class BlockSparsePays(Hypothesis):
    """A block-sparse layer is faster than the dense one on one GPU.

    At a level of 0.9, unless its row names another.
    """

    subject, rivals = "block_sparse", best_of(span=Span.ONE)


@HYPOTHESES.register("H9")
class NetworkGains(Hypothesis):
    """A whole network gains at least half of what its layers gain.

    With T and L the times of a pass and of its linear layers alone: T_dense ÷ T_row − 1 is at least half of L_dense ÷
    L_row − 1, and no loss; dense is the network as it is.
    """

    subject, rivals, passes = asked_about, NETWORK, ("network",)


@HYPOTHESES.register("H10")
class BlockPays(Hypothesis):
    """Forward and backward, a feed-forward block with a recipe is faster than the best dense one.

    With all that keeps it 2:4. Best: eager, or compiled.
    """

    subject, rivals, passes = "recipe", NETWORK, ("ffn",)
