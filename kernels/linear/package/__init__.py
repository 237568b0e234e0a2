"""The linear layer: y = x weight^T + bias, weights read where they lie, sums in float32."""

from typing import Optional

import torch

from . import layers
from ._ops import ops


def linear(x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor] = None,
           out: Optional[torch.Tensor] = None) -> torch.Tensor:
    """Multiplies the rows of `x` with the rows of `weight`; writes into `out` where given."""
    if out is None:
        return ops.linear(x, weight, bias)
    ops.linear_out(out, x, weight, bias)
    return out


__all__ = ["layers", "linear"]
