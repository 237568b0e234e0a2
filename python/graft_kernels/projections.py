"""The projections of attention that have one input, for training: one gradient of it, added to by one product after the
other, instead of one each and the sums of them.

The first projection that is called computes all; the others hand out what is theirs when they are given the same input.
"""

import types
from typing import Optional

import torch
import torch.nn as nn

PARTS = ("q_proj", "k_proj", "v_proj")
STATE = "_graft_joined"   # of each part


class Joined:
    """What the projections of one module share."""

    def __init__(self, parts: list):
        self.parts, self.made, self.is_apart = tuple(parts), None, False

    def take(self, number: int, x: torch.Tensor, layer: type) -> Optional[torch.Tensor]:
        """Returns the result of a part for x, or None where it is to compute it alone."""
        if number == 0:
            # What was made and never taken: this module calls its parts in another manner.
            self.is_apart, self.made = self.is_apart or self.made is not None, None
            if self._may_join(x):
                self.made = x, list(layer.join(x, [(part.weight, part.bias) for part in self.parts]))
        if self.made is None or self.made[0] is not x:
            return None
        results = self.made[1]
        result, results[number] = results[number], None
        if number + 1 == len(self.parts):
            self.made = None
        return result

    def _may_join(self, x: torch.Tensor) -> bool:
        usual = (torch.is_grad_enabled() and x.requires_grad and not torch.is_autocast_enabled(x.device.type)
                 and not torch.compiler.is_compiling())
        return not self.is_apart and usual and all(_is_plain(part, x) for part in self.parts)


def _is_plain(part: nn.Module, x: torch.Tensor) -> bool:
    """A weight that is here whole, as it was made: a part whose weight is sharded gathers it when it is called itself."""
    weight = part.weight
    return (type(part) is nn.Linear and type(weight) in (nn.Parameter, torch.Tensor)
            and weight.shape == (part.out_features, part.in_features)
            and (weight.dtype, weight.device) == (x.dtype, x.device))


def may_join(module: nn.Module) -> bool:
    """Whether a module has projections that can share an input."""
    parts = [getattr(module, name, None) for name in PARTS]
    return all(type(part) is nn.Linear for part in parts) and len({part.in_features for part in parts}) == 1


def refusal(module: nn.Module) -> str:
    """Returns why a module's projections stay as they are, or nothing."""
    parts = [getattr(module, name) for name in PARTS]
    if any("forward" in part.__dict__ for part in parts):
        return "another library rebound the forward of a projection"
    return ""


def swap(module: nn.Module, layer: type) -> None:
    joined = Joined([getattr(module, name) for name in PARTS])
    for number, part in enumerate(joined.parts):
        setattr(part, STATE, joined)
        part.forward = types.MethodType(_forward_of(number, layer), part)
        part.__dict__["_graft_swapped"] = (STATE,)


def _forward_of(number: int, layer: type) -> types.FunctionType:
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        result = getattr(self, STATE).take(number, input, layer)
        return type(self).forward(self, input) if result is None else result

    return forward
