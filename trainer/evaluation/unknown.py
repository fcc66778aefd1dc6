"""Pixels that a forecast cannot know, such as what flows in from outside the frame: how many, and how they count."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Self

import numpy as np
import numpy.typing as npt

UnknownRule = Literal["dry", "leave_out"]
BoolArray = npt.NDArray[np.bool_]
WHY: Final = "there flows in what lay outside the frame or was not measured"


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """How many measured pixels models cannot know, over windows and lead times; whole numbers, in any order the same.

    Attributes:
        num_measured: Pixels that the radar measured.
        num_by_model: Of those, what a model cannot know; models that know all are left out.
        num_by_any: Of those, what at least one model cannot know.
    """

    num_measured: int = 0
    num_by_model: Mapping[str, int] = field(default_factory=dict)
    num_by_any: int = 0

    def plus(self, other: Self) -> "Unknown":
        """Add up the counts of other windows."""
        names = {**self.num_by_model, **other.num_by_model}
        return Unknown(
            num_measured=self.num_measured + other.num_measured,
            num_by_model={name: self.num_by_model.get(name, 0) + other.num_by_model.get(name, 0) for name in names},
            num_by_any=self.num_by_any + other.num_by_any,
        )

    def lines(self, rule: UnknownRule) -> list[str]:
        """Report how many pixels it is about, and how they count."""
        if not self.num_by_any:
            return []
        # What is left out is one number for all; what counts as dry differs from model to model.
        if rule == "leave_out":
            names = ", ".join(name for name, num in self.num_by_model.items() if num)
            return [
                f"{self._share(self.num_by_any)} are left out for every model alike: {names} cannot know them ({WHY})."
            ]
        return [
            f"{name} cannot know {self._share(num)} ({WHY}): they count as dry for it. --unknown leave_out leaves them "
            "out for every model alike."
            for name, num in self.num_by_model.items()
            if num
        ]

    def _share(self, num: int) -> str:
        return f"{num} of {self.num_measured} measured pixels ({num / self.num_measured:.1%})"


def count_unknown(unknown_thw: Mapping[str, BoolArray], valid_thw: BoolArray | None, num_pixels: int) -> Unknown:
    """Count in one window.

    Args:
        unknown_thw: By model, what it cannot know, (lead times, rows, cols).
        valid_thw: True where the radar measured; None: everywhere.
        num_pixels: Of all lead times.
    """
    # What the radar did not measure is scored for nobody.
    measured = np.True_ if valid_thw is None else valid_thw
    any_thw = unknown_by_any(unknown_thw)
    return Unknown(
        num_measured=num_pixels if valid_thw is None else int(valid_thw.sum()),
        num_by_model={name: int((mask_thw & measured).sum()) for name, mask_thw in unknown_thw.items()},
        num_by_any=0 if any_thw is None else int((any_thw & measured).sum()),
    )


def unknown_by_any(unknown_thw: Mapping[str, BoolArray]) -> BoolArray | None:
    """Mark what at least one model cannot know; None where all know all."""
    any_thw: BoolArray | None = np.logical_or.reduce(list(unknown_thw.values())) if unknown_thw else None
    return any_thw
