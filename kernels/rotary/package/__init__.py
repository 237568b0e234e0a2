"""Rotary position embedding of query and key in one call, with a right gradient; and of a new token into a cache; with
the norms of query and key before it where a model has them."""

from typing import Tuple

import torch

from . import layers
from ._ops import ops
from .norm_rotary import norm_rotary, norm_rotary_append


def rotary(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
           interleaved: bool = False, inverse: bool = False) -> Tuple[torch.Tensor, torch.Tensor]:
    """Rotates query [B, S, Hq, D] and key [B, S, Hk, D] by tables [B or 1, S, R]; no gradient."""
    return ops.rotary(query, key, cos, sin, interleaved, inverse)


apply_rotary_transformers = layers.apply_rotary_transformers

__all__ = ["layers", "rotary", "norm_rotary", "norm_rotary_append", "apply_rotary_transformers"]
