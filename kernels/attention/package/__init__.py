"""Attention on the CPU for any number of queries, made for few: softmax(q k^T * scale + mask) v."""

from typing import Optional

import torch

from . import layers
from ._ops import ops


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Optional[torch.Tensor] = None,
              scale: Optional[float] = None, softcap: float = 0.0, causal: bool = False) -> torch.Tensor:
    """query [B, S, Hq, D], key and value [B, Hk, T, D] -> [B, S, Hq, D]; causal: the last query sees all keys."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return ops.attention(query, key, value, mask, scale, softcap, causal)


__all__ = ["attention", "layers"]
