"""Attention with gradients, dense and over packed sequences (CPU and CUDA)."""

from typing import Optional

import torch

from ._ops import ops


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _sinks_grad(grad, out, lse, sinks):
    """The weight that a sink takes is exp(sink - lse); it has no value. `lse` ends in [heads, queries]."""
    if sinks is None:
        return None
    delta = (grad.float() * out.float()).sum(-1).transpose(-1, -2)
    weight = torch.exp(sinks.float().unsqueeze(-1) - lse)
    total = -(weight * delta).sum(-1)
    return total.reshape(-1, sinks.shape[0]).sum(0).to(sinks.dtype)


class _Attention(torch.autograd.Function):
    """places: the mask, or where packed sequences of queries and of keys begin."""

    @staticmethod
    def forward(ctx, options, query, key, value, sinks, *places):
        op = ops.attention_forward_lse if len(places) == 1 else ops.attention_varlen
        out, lse = op(query, key, value, *places, sinks, *options)
        ctx.save_for_backward(query, key, value, out, lse, sinks, *places)
        ctx.options = options
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):
        query, key, value, out, lse, sinks, *places = ctx.saved_tensors
        op = ops.attention_backward if len(places) == 1 else ops.attention_varlen_backward
        grad = _rows(grad)
        deterministic = torch.are_deterministic_algorithms_enabled()
        grads = op(grad, query, key, value, out, lse, *places, *ctx.options, deterministic)
        return (None, *grads, _sinks_grad(grad, out, lse, sinks), *(None for _ in places))


def _attend(query, key, value, sinks, places, scale, softcap, window, causal):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _Attention.apply((scale, softcap, window, causal), _rows(query), _rows(key), _rows(value), sinks, *places)


def attention_train(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Optional[torch.Tensor] = None,
                    sinks: Optional[torch.Tensor] = None, scale: Optional[float] = None, softcap: float = 0.0,
                    window: int = 0, causal: bool = False):
    """query [B, S, Hq, D], key and value [B, Hk, T, D] -> out like query, lse [B, Hq, S] (no gradient through it)."""
    if mask is not None and mask.requires_grad:
        raise ValueError("[attention] mask: expected a tensor without gradient, got one that requires it")
    return _attend(query, key, value, sinks, (mask,), scale, softcap, window, causal)


def attention_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens_q: torch.Tensor,
                     cu_seqlens_k: torch.Tensor, sinks: Optional[torch.Tensor] = None,
                     scale: Optional[float] = None, softcap: float = 0.0, window: int = 0, causal: bool = False):
    """query [N, Hq, D], key and value [M, Hk, D], starts int32 -> out like query, lse [Hq, N]."""
    return _attend(query, key, value, sinks, (cu_seqlens_q, cu_seqlens_k), scale, softcap, window, causal)


__all__ = ["attention_train", "attention_varlen"]
