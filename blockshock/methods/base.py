"""What a method is: one row of the result table, a linear layer spread over a group of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import torch

from blockshock.errors import InputError
from blockshock.kernels import QuantisedWeights
from blockshock.machine import Borrowed, Exit, Group, Part, indexed, next_name
from blockshock.matrices import Mask, WeightSource
from blockshock.measure import FLOAT32, Operand, Sums, Work, product
from blockshock.methods.axes import axis_of
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.kinds import Promise, Role, check_kinds
from blockshock.methods.layer import Layer
from blockshock.methods.product import Weight
from blockshock.methods.whole import Spread
from blockshock.registry import Registry


class Method(Spread):
    """A linear layer y = x Wᵀ + bias whose replicated input and output are (B, K) and (B, N) on every rank.

    A subclass says what it stores (``weight``, or ``weights``) and how it multiplies: by ``partial``; or, where ranks
    agree on y, by ``multiply`` and an ``exit``. What its ``__init__`` takes beside the layer and the group is the
    user's to set: ``name:rank=8``.

    Attributes:
        promise, role: as of ``kinds``.
        axes: names of those that the user picks of for this method, in the order in which its id has them.
        roundings: how often an element of y is rounded to the dtype on its way; of partial sums, their number.
        collectives: how the ranks agree, forward and in backward: ``all_reduce``, ``all_gather`` or not at all.
        ranks: how many there are.
        sharded: each rank holds a shard of a dense weight, so that with one rank it is what ``dense_single`` is.
        instead: what puts such a layer into a user's own model, where that is none of ours.
        rounds_weight_gradients: to the dtype of the products, whatever the dtype of the parameters.
    """

    promise: ClassVar[Promise] = Promise.DENSE
    role: ClassVar[Role] = Role.SUBJECT
    axes: ClassVar[tuple[str, ...]] = ()
    collectives: tuple[str | None, str | None] = (None, None)
    sharded: ClassVar[bool] = False
    instead: ClassVar[str | None] = None
    rounds_weight_gradients: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Raises InputError if it says how to multiply where nobody would ask, or is of no kind that there is."""
        check_kinds(cls)
        if "partial" in vars(cls) and cls.multiply is not Method.multiply:
            raise InputError(
                f"{cls.__name__}: ranks agree on its output; define multiply(x_BK, exit), not partial(x_BK)"
            )

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__()
        source = layer.source
        self.N, self.K, self.dtype, self.device = source.N, source.K, source.dtype, indexed(source.device)
        self._borrowed, self.ranks = Borrowed(group), group.size()
        self._name, self._copies = next_name(group, self.N, self.K), 0
        self.rows, self.columns = self.part(Shape.of(source, self.ranks), group.rank())

    @property
    def group(self) -> Group:
        """Raises InputError where it is destroyed."""
        return self._borrowed.group

    @classmethod
    def part(cls, shape: Shape, rank: int) -> tuple[slice, slice]:
        """The rows and columns of W that a rank multiplies by: here all of them."""
        return slice(0, shape.N), slice(0, shape.K)

    @classmethod
    def check(cls, shape: Shape) -> None:
        """Raises InputError if this method cannot lay out such a layer over so many ranks."""
        cls.part(shape, 0)

    @classmethod
    def reference(cls, layer: Layer, ranks: int) -> WeightSource:
        """What its output is right for, as it promises: W, or its own W′."""
        return layer.source

    @classmethod
    def promised(cls, picks: Mapping[str, str | Mask]) -> Promise:
        """What "right" means for it with such picks."""
        return cls.promise

    @classmethod
    def plays(cls, picks: Mapping[str, str | Mask]) -> Role:
        """What a row of it with such picks is in the comparison."""
        return cls.role

    @classmethod
    def multiplied(cls, layer: Layer, ranks: int) -> WeightSource:
        """``reference`` as the format has it that was picked: what an output is right for."""
        reference, format = cls.reference(layer, ranks), layer.format
        return reference if format is None else QuantisedWeights(reference, format)

    @classmethod
    def met(cls, layer: Layer, x_BK: torch.Tensor, ranks: int = 1, back: bool = False) -> torch.Tensor:
        """What of x, or ``back`` of ∇y, those weights are multiplied by: it, or what a format has of it in float64."""
        return x_BK

    @classmethod
    def first_half(cls, layer: Layer) -> WeightSource | None:
        """What the first of its halves multiplies by, which can stand for W at a loss; None where it has none."""
        return None

    def hold(self, layer: Layer, bias: torch.Tensor | None, adds_bias: bool = True) -> Weight:
        """This rank's rows and columns, and their bias.

        Args:
            adds_bias: this rank's product does; otherwise the bias is trained beside it.
        """
        return layer.weight(layer.source.gather(self.columns, rows=self.rows), bias, adds_bias)

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype, differentiated: bool) -> str | None:
        """None, or one sentence that says why this method cannot run there, or not go backward."""
        return None

    @classmethod
    def check_layer(cls, layer: Layer) -> None:
        """Raises MaskError or InputError if what was picked is not what this method takes. It reads all of it."""

    @classmethod
    def unsuitable(cls, layer: Layer, **parameters: Any) -> str | None:
        """None, or one sentence that says why it, or what was picked, cannot take a layer. Allocates nothing of size.

        Args:
            parameters: what its ``__init__`` would take beside the layer and the group.
        """
        for name in layer.picks:
            if (spec := layer.pick(name)) and (reason := axis_of(name).unsuitable(spec, layer)):
                return f"{name} {spec}: {reason}"
        return None

    @classmethod
    def estimate(cls, shape: Shape) -> WeightEstimate:
        """Weight bytes a rank holds, by arithmetic."""
        raise NotImplementedError

    @property
    def roundings(self) -> int:
        return 1

    @property
    def sums(self) -> Sums:
        """How it adds up over K."""
        return FLOAT32

    @property
    def grad_roundings(self) -> int:
        """The same of an element of grad_X."""
        return 1

    @property
    def resolved(self) -> dict[str, str]:
        """What runs of each axis, where that is not what was picked: the kernel that ``auto`` chose."""
        return {}

    @property
    def algorithm(self) -> str:
        """The kernel and algorithm that ran, for the record."""
        return f"dense {self.packings()[0].algorithm}".strip()

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        self._check_input(x_BK)
        return self.multiply(x_BK, self.exit)

    @property
    def exit(self) -> Exit:
        """How every rank gets y (B, N) of all ranks' parts: the stage ``reduce``."""
        return Exit()

    def multiply(self, x_BK: torch.Tensor, exit: Exit) -> torch.Tensor:
        """What this rank computes of the replicated input, as it leaves by that exit."""
        part_BN = self.partial(x_BK)
        if type(exit) is Exit and part_BN.is_contiguous():
            return part_BN  # which is all that joining it would come to
        return exit.join(Part.of(part_BN))

    def partial(self, x_BK: torch.Tensor) -> torch.Tensor:
        """The same by itself, where ranks do not agree on it."""
        raise NotImplementedError

    def operands(self) -> tuple[list[Operand], list[Operand] | None]:
        """What the forward product multiplies by, and the backward one where that reads other memory."""
        packings = self.packings()
        others = [packed.backward.packed.operand for packed in packings if packed.backward is not None]
        return [packed.operand for packed in packings], others or None

    def read(self) -> tuple[int, int]:
        """How many features of x, and of ∇y, some weight of this rank meets."""
        return len(range(self.K)[self.columns]), len(range(self.N)[self.rows])

    def work(self, tokens: int, backward: bool = False) -> dict[str, Work]:
        """What a forward pass takes of this rank at least, or both passes: ``products`` and ``communication``."""
        each = tokens * self.dtype.itemsize
        x_size, y_size = each * len(range(self.K)[self.columns]), each * len(range(self.N)[self.rows])
        x_read, y_read = (each * many for many in self.read())
        forward, other = self.operands()
        products = product(tokens, forward, x_read, y_size)
        sizes = [tokens * self.N * self.dtype.itemsize]
        if backward:
            products += product(tokens, other or forward, y_read, x_size, again=other is None)
            sizes.append(tokens * self.K * self.dtype.itemsize)
        messages = tuple((name, size) for name, size in zip(self.collectives, sizes, strict=False) if name)
        alone = self.group.size() == 1 or not messages
        return {"products": products} | ({} if alone else {"communication": Work(messages=messages)})

    def __getstate__(self) -> dict[str, Any]:
        if self.ranks > 1:
            raise InputError(
                f"a layer on {self.ranks} ranks cannot be pickled, for its process group is this run's: save "
                "its state_dict(), or to_linear()"
            )
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if found := {tensor.device for tensor in self.tensors()} - {self.device}:
            raise InputError(
                f"a layer that was built on {self.device} cannot be loaded onto {', '.join(sorted(map(str, found)))}: "
                "load its state_dict() into a layer that was built there"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Method:
        """A copy on the same group of ranks."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__({name: deepcopy(value, memo) for name, value in vars(self).items()})
        self._copies += 1
        new._name, new._copies = f"{self._name}, copy {self._copies}", 0
        new._mark_split()
        return new

    def _check_input(self, x_BK: torch.Tensor) -> None:
        if x_BK.ndim != 2 or x_BK.shape[1] != self.K:
            raise InputError(f"x must be (B, {self.K}), got {tuple(x_BK.shape)}")
        if x_BK.dtype != self.dtype or x_BK.device != self.device:
            wanted, found = f"{self.dtype} on {self.device}", f"{x_BK.dtype} on {x_BK.device}"
            raise InputError(f"x must be {wanted}, got {found}: pass x.to('{self.device}', {self.dtype})")


METHODS: Registry[type[Method]] = Registry("method")
