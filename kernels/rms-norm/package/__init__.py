"""Root-mean-square norm, with an optional residual addition in front or a gate, and layer norm.

The numeric variants differ in where the result is rounded to the input's dtype and in the weight's offset:
0 rounds before the weight (Llama), 1 and 2 after it (OLMo 2, Nemotron-H), 3 after (1 + weight) (Gemma).
"""

from typing import Optional, Tuple

import torch

from . import layers
from ._ops import ops
from .layers import gated_rms_norm, layer_norm


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, variant: int = 0,
             out: Optional[torch.Tensor] = None) -> torch.Tensor:
    """Normalizes the rows of `x`; writes into `out` where given."""
    if out is None:
        return ops.rms_norm(x, weight, eps, variant)
    ops.rms_norm_out(out, x, weight, eps, variant)
    return out


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6,
                 variant: int = 0) -> Tuple[torch.Tensor, torch.Tensor]:
    """Returns (norm(x + residual), x + residual); the sum is rounded to the input's dtype first."""
    return ops.add_rms_norm(x, residual, weight, eps, variant)


__all__ = ["layers", "rms_norm", "add_rms_norm", "gated_rms_norm", "layer_norm"]
