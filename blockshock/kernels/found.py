"""What a search among a library's settings came to: the one to multiply with, and those that multiply wrongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

S = TypeVar("S")


@dataclass(frozen=True)
class Searched(Generic[S]):
    """Of one kind of settings; a subclass says how they are read and told.

    Attributes:
        setting: what to multiply with; None where nothing that was tried multiplies right.
        turned_away: what was tried and multiplies wrongly.
        failed: what the search ended in, where it came to no end of its own: the setting is then the one to begin with.
        nothing: what is said where there is no setting.
    """

    setting: S | None
    turned_away: tuple[S, ...] = ()
    failed: str = ""
    nothing: ClassVar[str] = "no setting"

    @staticmethod
    def parse(stored: Any) -> S:
        """A setting after a way through JSON. Raises TypeError or ValueError where it is none."""
        raise NotImplementedError

    @staticmethod
    def told(setting: S) -> str:
        """A setting, for the record."""
        return str(setting)

    @classmethod
    def read(cls, stored: Any) -> Self | None:
        """The inverse of ``asdict`` after a way through JSON; None of anything else."""
        try:
            setting, turned_away = stored["setting"], tuple(map(cls.parse, stored["turned_away"]))
            return cls(None if setting is None else cls.parse(setting), turned_away, str(stored["failed"]))
        except (TypeError, KeyError, ValueError):
            return None

    @property
    def name(self) -> str:
        """For the record."""
        used = self.nothing if self.setting is None else self.told(self.setting)
        away = f"turned away: {'; '.join(map(self.told, self.turned_away))}" if self.turned_away else ""
        failed = f"the search failed: {self.failed}" if self.failed else ""
        remarks = "; ".join(filter(None, (away, failed)))
        return f"{used} ({remarks})" if remarks else used
