"""softmax(q k^T * scale + mask) v on CPU and CUDA, also over a cache, in one piece or in pages, that new tokens join."""

from typing import Optional

import torch

from . import layers, training
from ._ops import ops
from .flash import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from .training import attention_train, attention_varlen


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Optional[torch.Tensor] = None,
              scale: Optional[float] = None, softcap: float = 0.0, causal: bool = False) -> torch.Tensor:
    """query [B, S, Hq, D], key and value [B, Hk, T, D] -> [B, S, Hq, D]; causal: the last query sees all keys."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return ops.attention(query, key, value, mask, scale, softcap, causal)


def attention_decode(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                     lengths: Optional[torch.Tensor] = None, block_table: Optional[torch.Tensor] = None,
                     mask: Optional[torch.Tensor] = None, sinks: Optional[torch.Tensor] = None,
                     scale: Optional[float] = None, softcap: float = 0.0, window: int = 0, causal: bool = True,
                     splits: int = 0, out: Optional[torch.Tensor] = None,
                     lse: Optional[torch.Tensor] = None) -> torch.Tensor:
    """The last S tokens' query [B, S, Hq, D] over a cache [B, Hk, T, D], or pages [P, Hk, page, D] with block_table."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = torch.empty_like(query) if out is None else out
    ops.attention_decode_out(out, lse, query, key, value, lengths, block_table, mask, sinks, scale, softcap, window,
                             causal, splits)
    return out


def attention_append(query: torch.Tensor, new_key: torch.Tensor, new_value: torch.Tensor, key: torch.Tensor,
                     value: torch.Tensor, lengths: torch.Tensor, cos: Optional[torch.Tensor] = None,
                     sin: Optional[torch.Tensor] = None, positions: Optional[torch.Tensor] = None,
                     block_table: Optional[torch.Tensor] = None, sinks: Optional[torch.Tensor] = None,
                     scale: Optional[float] = None, softcap: float = 0.0, window: int = 0, causal: bool = True,
                     interleaved: bool = False, splits: int = 0, out: Optional[torch.Tensor] = None,
                     lse: Optional[torch.Tensor] = None) -> torch.Tensor:
    """attention_decode() of S new tokens whose keys and values [B, S, Hk, D] join the cache in the same call.

    lengths count them; cos, sin [positions, R] turn queries and new keys."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = torch.empty_like(query) if out is None else out
    ops.attention_append_out(out, lse, key, value, query, new_key, new_value, cos, sin, lengths, positions, block_table,
                             sinks, scale, softcap, window, causal, interleaved, splits)
    return out


__all__ = ["attention", "attention_append", "attention_decode", "attention_train", "attention_varlen", "flash_attn_func",
           "flash_attn_varlen_func", "flash_attn_with_kvcache", "layers", "training"]
