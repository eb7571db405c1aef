"""The errors that users of the package meet. Each is also the built-in type that fits it best."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class BlockShockError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(BlockShockError, ValueError):
    """A tensor, a shape, a dtype or a device that the called code cannot take."""


class MaskError(BlockShockError, ValueError):
    """A mask that is not what it must be: 2:4, complementary, transposable, or of the right shape."""


class UnknownName(BlockShockError, ValueError):
    """A name that no registry holds; the message suggests the nearest and lists the choices."""


class KernelUnavailable(BlockShockError, RuntimeError):
    """A kernel that cannot run here; the message says why, in words a user can act on."""


class StalePacking(BlockShockError, RuntimeError):
    """A weight's parameter changed and what multiplies in its place did not, or one of them did before backward."""

    @classmethod
    def before_backward(cls, values: torch.Tensor) -> StalePacking:
        """Of a backward pass by other weights than those that went forward, in torch's words."""
        return cls(
            f"one of the variables needed for gradient computation has been modified by an inplace operation: a "
            f"weight, held as {values.dtype} {tuple(values.shape)}, changed between a forward pass and its backward "
            "pass: call backward before the optimizer's step(), or the forward pass again after it"
        )


class RanksApart(BlockShockError, RuntimeError):
    """Ranks that must make a call together did not."""


class ExtensionFailed(BlockShockError, ImportError):
    """A user's file, or an installed package, that adds to the registries and cannot be loaded; says what to do."""


class ExtraMissing(BlockShockError, ImportError):
    """A command needs a package that only an extra installs; the message says which extra."""
