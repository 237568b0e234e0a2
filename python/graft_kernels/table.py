"""What was swapped in a model and what was not: the table of `graft explain`."""

import collections
import dataclasses
import weakref
from typing import List, Optional

import torch.nn as nn

from .slots import Slot

_reports: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


@dataclasses.dataclass
class Row:
    """One slot: the build variant that serves it, or why its own layer stays."""

    slot: Slot
    build: str
    refusal: str

    @property
    def swapped(self) -> bool:
        return not self.refusal

    def left(self) -> str:
        return self.slot.layer + (f" ({self.slot.variant})" if self.slot.variant else "")

    def right(self) -> str:
        if self.refusal:
            return f"reference: {self.refusal}"
        return f"graft-kernels/{self.slot.package}:{self.slot.kernel}  [{self.build}, embedded hub]"


@dataclasses.dataclass
class Report:
    """Rows in the model's order; printing it gives the table."""

    rows: List[Row]
    device: str
    mode: object

    @property
    def swapped(self) -> int:
        return sum(row.swapped for row in self.rows)

    def to_dict(self) -> dict:
        """Returns the report as plain data, one entry for every slot."""
        return {"device": self.device, "mode": _words(self.mode), "swapped": self.swapped, "slots": [
            {"path": row.slot.path, "layer": row.slot.layer, "variant": row.slot.variant,
             "package": f"graft-kernels/{row.slot.package}", "kernel": row.slot.kernel, "build": row.build,
             "swapped": row.swapped, "reason": row.refusal} for row in self.rows]}

    def __str__(self) -> str:
        counts = collections.Counter((row.left(), row.right()) for row in self.rows)
        lines = [f"{count:5} x {left:<36} {right}" for (left, right), count in sorted(counts.items())]
        return "\n".join(lines + [f"swapped {self.swapped} of {len(self.rows)} slots on {self.device}, "
                                  f"mode {_words(self.mode)}"])


def _words(mode: object) -> str:
    return "|".join(member.name.lower() for member in type(mode) if member in mode)


def record(model: nn.Module, report: Optional[Report]) -> None:
    """Keeps the report of a model for as long as the model lives; None forgets it."""
    if report is None:
        _reports.pop(model, None)
    else:
        _reports[model] = report


def report(model: nn.Module) -> Report:
    """Returns the table of a model that kernelize or `kernel_config()` served; an empty one for any other model."""
    from .swap import device_of, to_mode
    return _reports.get(model) or Report([], device_of(model), to_mode(None, model))
