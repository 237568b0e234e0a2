from typing import Optional

import torch
import torch.nn as nn

from ._ops import ops


class Attention(nn.Module):
    """query [B, S, Hq, D], key and value [B, Hk, T, D] -> [B, S, Hq, D]."""

    can_torch_compile = True
    has_backward = False

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Optional[torch.Tensor],
                scale: float, softcap: float, causal: bool) -> torch.Tensor:
        return ops.attention(query, key, value, mask, scale, softcap, causal)


__all__ = ["Attention"]
