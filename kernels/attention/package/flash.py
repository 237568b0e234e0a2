"""Under the names and signatures of flash-attn, which transformers looks for in a kernel that an attn_implementation
names. Layouts are flash-attn's: [B, S, H, D], packed [N, H, D]. What the ops cannot do is refused by name."""

from typing import Optional, Tuple, Union

import torch

from ._ops import add_op_namespace_prefix, ops
from .training import attention_train, attention_varlen


def _refuse(what: str, expected: str, got) -> None:
    raise ValueError(f"[attention] {what}: expected {expected}, got {got}")


def _window(causal: bool, window_size: Tuple[int, int]) -> int:
    """Keys that a query sees, itself included; 0: all."""
    left, right = window_size
    if left < 0 and (right < 0 or causal):
        return 0
    if not causal:
        _refuse("window_size", "(-1, -1) without causal", window_size)
    return left + 1 if left >= 0 else 0


def _check(dropout_p: float, alibi_slopes, return_attn_probs: bool) -> None:
    if dropout_p:
        _refuse("dropout_p", "0 (set the model's attention_dropout to 0)", dropout_p)
    if alibi_slopes is not None:
        _refuse("alibi_slopes", "None", "a tensor")
    if return_attn_probs:
        _refuse("return_attn_probs", "False", True)


def _trains(*tensors: Optional[torch.Tensor]) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _leaves_lse(device: torch.device) -> bool:
    """Whether the op that leaves a log-sum-exp is there for the device."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        add_op_namespace_prefix("attention_forward_lse"), "CUDA" if device.type == "cuda" else "CPU")


_LSE_DEVICES = {name: _leaves_lse(torch.device(name)) for name in ("cpu", "cuda")}


def flash_attn_func(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float = 0.0,
                    softmax_scale: Optional[float] = None, causal: bool = False,
                    window_size: Tuple[int, int] = (-1, -1), softcap: float = 0.0,
                    alibi_slopes: Optional[torch.Tensor] = None, deterministic: bool = False,
                    return_attn_probs: bool = False, s_aux: Optional[torch.Tensor] = None) -> torch.Tensor:
    """q [B, S, Hq, D], k and v [B, T, Hk, D] -> [B, S, Hq, D]; causal: the last query sees all keys.

    s_aux [Hq]: attention sinks. Always deterministic on the CPU."""
    _check(dropout_p, alibi_slopes, return_attn_probs)
    window = _window(causal, window_size)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    key, value = k.transpose(1, 2), v.transpose(1, 2)
    if _trains(q, k, v, s_aux):
        return attention_train(q, key, value, None, s_aux, scale, softcap, window, causal)[0]
    query, key, value = _rows(q), _rows(key), _rows(value)
    if not window and s_aux is None and (q.shape[1] <= 16 or not _LSE_DEVICES[q.device.type]):
        return ops.attention(query, key, value, None, scale, softcap, causal)
    return ops.attention_forward_lse(query, key, value, None, s_aux, scale, softcap, window, causal)[0]


def flash_attn_varlen_func(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor,
                           cu_seqlens_k: torch.Tensor, max_seqlen_q=None, max_seqlen_k=None,
                           dropout_p: float = 0.0, softmax_scale: Optional[float] = None, causal: bool = False,
                           window_size: Tuple[int, int] = (-1, -1), softcap: float = 0.0,
                           alibi_slopes: Optional[torch.Tensor] = None, deterministic: bool = False,
                           return_attn_probs: bool = False, s_aux: Optional[torch.Tensor] = None) -> torch.Tensor:
    """q [N, Hq, D], k and v [M, Hk, D] -> [N, Hq, D]; starts int32 [sequences + 1]. The longest lengths are not needed."""
    _check(dropout_p, alibi_slopes, return_attn_probs)
    window = _window(causal, window_size)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    starts_q, starts_k = cu_seqlens_q.to(torch.int32), cu_seqlens_k.to(torch.int32)
    if _trains(q, k, v, s_aux):
        return attention_varlen(q, k, v, starts_q, starts_k, s_aux, scale, softcap, window, causal)[0]
    return ops.attention_varlen(_rows(q), _rows(k), _rows(v), starts_q, starts_k, s_aux, scale, softcap, window,
                                causal)[0]


def _tables(cos: Optional[torch.Tensor], interleaved: bool) -> Optional[torch.Tensor]:
    """flash-attn's table has one column a pair of elements, ours one an element."""
    if cos is None:
        return None
    return cos.repeat_interleave(2, -1) if interleaved else torch.cat((cos, cos), -1)


def flash_attn_with_kvcache(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor,
                            k: Optional[torch.Tensor] = None, v: Optional[torch.Tensor] = None,
                            rotary_cos: Optional[torch.Tensor] = None, rotary_sin: Optional[torch.Tensor] = None,
                            cache_seqlens: Optional[Union[int, torch.Tensor]] = None, cache_batch_idx=None,
                            cache_leftpad=None, block_table: Optional[torch.Tensor] = None,
                            softmax_scale: Optional[float] = None, causal: bool = False,
                            window_size: Tuple[int, int] = (-1, -1), softcap: float = 0.0,
                            rotary_interleaved: bool = True, alibi_slopes: Optional[torch.Tensor] = None,
                            num_splits: int = 0, return_softmax_lse: bool = False,
                            s_aux: Optional[torch.Tensor] = None, page_table: Optional[torch.Tensor] = None):
    """q [B, S, Hq, D] over k_cache and v_cache [B, T, Hk, D], or pages [P, page, Hk, D] with block_table (page_table is
    its other name) -> [B, S, Hq, D], and with return_softmax_lse the log-sum-exp [B, Hq, S].

    k and v [B, S, Hk, D] are appended to the cache at cache_seqlens [B] int32, which does not count them, k and q
    turned by the rotary tables [positions, R / 2] if there are some. No gradients."""
    _check(0.0, alibi_slopes, False)
    if cache_batch_idx is not None:
        _refuse("cache_batch_idx", "None (index the block_table instead)", "a tensor")
    if cache_leftpad is not None:
        _refuse("cache_leftpad", "None", "a tensor")
    if rotary_cos is not None and k is None:
        _refuse("rotary_cos", "None without k", "a tensor")
    if block_table is not None and page_table is not None:
        _refuse("page_table", "None beside block_table", "a tensor")
    window = _window(causal, window_size)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    table = block_table if page_table is None else page_table
    if cache_seqlens is None:
        lengths = None
    elif isinstance(cache_seqlens, int):
        lengths = torch.full((q.shape[0],), cache_seqlens, dtype=torch.int32, device=q.device)
    else:
        lengths = cache_seqlens.to(torch.int32)
    key, value = k_cache.transpose(1, 2), v_cache.transpose(1, 2)
    query = _rows(q)
    out = torch.empty_like(query)
    lse = query.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32) if return_softmax_lse else None
    if k is None:
        ops.attention_decode_out(out, lse, query, key, value, lengths, table, None, s_aux, scale, softcap, window,
                                 causal, num_splits)
    else:
        if lengths is None:
            _refuse("cache_seqlens", "the lengths before the tokens of k", "None")
        ops.attention_append_out(out, lse, key, value, query, _rows(k), _rows(v), _tables(rotary_cos, rotary_interleaved),
                                 _tables(rotary_sin, rotary_interleaved), lengths + q.shape[1], None, table, s_aux,
                                 scale, softcap, window, causal, rotary_interleaved, num_splits)
    return (out, lse) if return_softmax_lse else out


__all__ = ["flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]
