"""How a weight is held while it is trained: a parameter, and what multiplies in its place, equal again after a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any
from weakref import ref

import torch
from torch import nn

from blockshock.errors import StalePacking
from blockshock.kernels import Packed
from blockshock.machine import states_of, torch_internals
from blockshock.matrices import Mask
from blockshock.stages import stage
from blockshock.training.seen import Seen, first_difference
from blockshock.training.sharded import Shardable, check_replicas, spread_as
from blockshock.training.steps import follow, part_of


class Storage(Shardable):
    """A trained weight (N, K). Multiplies as its packing does, and refuses to once the two differ.

    What multiplies is no part of the module tree: who averages or broadcasts a model writes its buffers too.

    Attributes:
        parameter: what the optimizer holds.
        bias: the layer's trained bias (N,), replicated, where this weight's product is the one that adds it.
        packed: what multiplies.
        mask: of what is kept of it; None where all is.
        states: of its parameters, as far as torch counts, when they were packed.
    """

    mask: Mask | None = None
    _leader: Callable[[], Any] = staticmethod(lambda: None)
    bias: nn.Parameter | None
    packed: Packed

    def __init__(self, parameter: nn.Parameter, packed: Packed, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.parameter = parameter
        vars(self)["packed"] = packed  # an attribute that nn.Module does not see
        self.register_parameter("bias", bias)
        self._is_due = False  # to be packed when shards are gathered: many steps move no count of a DTensor's
        self._seen: list[Seen] = []
        self.states: list[Any] = []
        self._see()

    def tensors(self) -> list[torch.Tensor]:
        """All that it holds beside the parameters; some of it may be their memory."""
        return self.packed.tensors()

    def _see(self) -> None:
        """From now on, what multiplies is what the parameters are now; and be told of their steps."""
        if torch.compiler.is_compiling():
            _see_when_run(self)
            return
        trained, seen = self.trained_parameters(), self._seen
        states = states_of((trained,))
        if len(seen) != len(trained) or not all(map(Seen.is_of, seen, trained)):
            seen[:] = map(Seen, trained)
            self._follow()
        elif states[2::3] != self.states[2::3]:  # of other memory, which it keeps from being taken for this one
            for one, parameter in zip(seen, trained, strict=True):
                one.see(parameter)
        self.states[:] = states

    def _follow(self) -> None:
        for followed in self.trained_parameters():
            follow(followed, self._leader() or self)

    def lead(self, leader: Any) -> None:
        """From now on another's ``after_step`` is called in the place of its own, and ``forget`` when it was packed."""
        vars(self)["_leader"] = ref(leader)
        self._follow()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_seen", "states", "_leader")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Of a copy: its parameters are new ones, which nobody follows, and no longer the packing's memory.
        super().__setstate__(state | {"_seen": [], "states": []})
        self._share_memory()
        self.refresh()

    def _share_memory(self) -> None:
        """Make the parameter the packing's memory, where it was that in what this is a copy of."""

    def _check_shard(self, held: torch.Tensor, shard: Any) -> None:
        for group in shard.device_mesh.get_all_groups():
            check_replicas("fully_shard", group, part_of(held), self.mask)
        if (leader := self._leader()) is not None:
            leader.disband()  # shards are gathered wherever there is memory, and once more to go backward

    def when_gathered(self) -> None:
        if self._is_due or self.is_stale:
            self._take_over()

    @property
    def is_stale(self) -> bool:
        """Whether a parameter changed, or is another one, since the packing was written."""
        held = self.trained_parameters() if self._shards else self._parameters.values()
        return states_of((held,)) != self.states

    @property
    def writes(self) -> int:
        """As of the packing."""
        return self.packed.writes

    def check_since(self, writes: int) -> None:
        """As of the packing. A parameter that changed may be the packing's own memory; no bias goes backward."""
        if self.packed.writes != writes or self.is_stale:
            self.packed.check_since(writes)
            if self.has_changed:
                raise StalePacking.before_backward(self.parameter)

    def _weights(self) -> list[tuple[torch.Tensor, list[Any]]]:
        """What multiplies is made of these, each with how it was when it was packed."""
        names = [name for name, held in self._parameters.items() if held is not None]
        return [(self.trained(one), self.states[3 * at : 3 * at + 3]) for at, one in enumerate(names) if one != "bias"]

    @property
    def has_changed(self) -> bool:
        """The same as ``is_stale`` of the weight alone."""
        return any(states_of(((weight,),)) != state for weight, state in self._weights())

    def is_spared(self, held: Sequence[torch.Tensor]) -> bool:
        """Whether a step of an optimizer that holds these left the weight alone; it may write where nothing counts."""
        weights = [one for one, _ in self._weights() if one.requires_grad or one.grad is not None]
        return not (self._shards or self.has_changed or any(one is weight for one in held for weight in weights))

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            self.check()
        return self.packed.forward(x_BK)  # which is in no module tree, for hooks to stand on

    def checked(self) -> Packed:
        """What multiplies. Raises StalePacking as ``check`` does."""
        self.check()
        return self.packed

    def check(self) -> None:
        """Raises StalePacking if what multiplies is no longer what is trained."""
        if self.is_stale and not self._was_moved():
            raise StalePacking(
                f"the parameter of a {tuple(self.parameter.shape)} weight changed after it was packed: an optimizer's "
                "step() packs it by itself; after any other change call refresh() on the layer"
            )

    def _was_moved(self) -> bool:
        """Whether nothing was written, and all only lies elsewhere, as what another process was handed does."""
        before, now = self.states, states_of((self._parameters.values(),))
        if self._shards or now[::3] != before[::3]:
            return False
        self.states = now
        self.states, different = before, self.difference()  # found with those of now
        if not different:
            self._see()
        return not different

    def grad_input(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        """As of the packing."""
        return self.packed.grad_input(grad_y_BN)

    def used(self, x_BK: torch.Tensor) -> torch.Tensor:
        """What ``forward`` and ``grad_weight`` take in place of x, and backward keeps of it; or x itself."""
        return x_BK

    def differentiated(self) -> torch.Tensor:
        """What autograd is given for ``grad_weight`` to go to: the parameter, or what hands it on to more than that."""
        return self._parameters["parameter"]  # type: ignore[return-value]  # where attributes are looked up in at last

    def grad_weight(self, grad_y_BN: torch.Tensor, x_BK: torch.Tensor) -> torch.Tensor:
        """The gradient of ``parameter``. Stage ``grad_w``."""
        raise NotImplementedError

    def grad_bias(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        """The gradient of ``bias``."""
        return grad_y_BN.sum(0, dtype=self._parameters["bias"].dtype)  # type: ignore[union-attr]  # a gathered one

    def refresh(self) -> None:
        """Make what multiplies equal to the parameters again; to shards, once they are gathered."""
        vars(self)["_is_due"] = bool(self._shards)  # past nn.Module, which takes long to set an attribute
        self._follow() if self._shards else self._take_over()

    @torch.no_grad()
    def _take_over(self) -> None:
        self.pack()
        self._take_bias()

    @torch.no_grad()
    def _take_bias(self) -> None:
        bias, held = self.bias, self.packed.bias
        if bias is not None and held is not None:
            held.copy_(self.packed.arrange(bias))
        vars(self)["_is_due"] = False
        self._see()
        if (leader := self._leader()) is not None:
            leader.forget()

    def after_step(self, held: Sequence[torch.Tensor]) -> None:
        """What the ``step`` of an optimizer ends with that holds these of the parameters."""
        if self.is_spared(held):
            self._take_bias()
        else:
            self.refresh()

    def pack(self) -> None:
        """Take the parameter over into the packing."""
        with stage("refresh"):
            self._write(self.packed)

    def _write(self, packed: Packed) -> None:
        """Take the parameter over into a packing of this weight."""
        packed.write(self.parameter)

    @torch.no_grad()
    def difference(self) -> str | None:
        """Where what multiplies, or adds the bias, differs from the parameters, bit for bit; None if nowhere. A second
        packing is held for as long as this takes."""
        if self.is_stale:
            return "a parameter changed after it was packed"
        should = deepcopy(self.packed)
        self._write(should)
        if self.bias is not None and should.bias is not None:
            should.bias.copy_(should.arrange(self.bias))
        found = dict(self.packed.named_buffers())
        named = ((name, first_difference(found[name], buffer)) for name, buffer in should.named_buffers())
        return next((f"its packing's {name} holds {what} as the parameter" for name, what in named if what), None)

    def dense(self, held: torch.Tensor) -> torch.Tensor:
        """The (N, K) matrix of a tensor that lies as the parameter does: the parameter, or a state of an optimizer."""
        return held

    def held(self, dense_NK: torch.Tensor) -> torch.Tensor:
        """The inverse of ``dense``; what the mask drops is lost."""
        return dense_NK

    @torch.no_grad()
    def load(self, w_NK: torch.Tensor) -> None:
        """Take over the values of a dense matrix exactly, zeros too."""
        parameter = self.trained("parameter")
        parameter.copy_(spread_as(parameter, self.held(w_NK.to(parameter.dtype))))
        self.refresh()


# While code is traced, no tensor has the memory or version that it will have.
_see_when_run = torch_internals.uncompiled(Storage._see)
