"""Attention with gradients, dense and over packed sequences (CPU)."""

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
    @staticmethod
    def forward(ctx, query, key, value, mask, sinks, options):
        out, lse = ops.attention_forward_lse(query, key, value, mask, sinks, *options)
        ctx.save_for_backward(query, key, value, out, lse, mask, sinks)
        ctx.options = options
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):
        query, key, value, out, lse, mask, sinks = ctx.saved_tensors
        grad = _rows(grad)
        grads = ops.attention_backward(grad, query, key, value, out, lse, mask, *ctx.options)
        return (*grads, None, _sinks_grad(grad, out, lse, sinks), None)


class _Varlen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, starts_q, starts_k, sinks, options):
        out, lse = ops.attention_varlen(query, key, value, starts_q, starts_k, sinks, *options)
        ctx.save_for_backward(query, key, value, out, lse, starts_q, starts_k, sinks)
        ctx.options = options
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):
        query, key, value, out, lse, starts_q, starts_k, sinks = ctx.saved_tensors
        grad = _rows(grad)
        grads = ops.attention_varlen_backward(grad, query, key, value, out, lse, starts_q, starts_k, *ctx.options)
        return (*grads, None, None, _sinks_grad(grad, out, lse, sinks), None)


def attention_train(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Optional[torch.Tensor] = None,
                    sinks: Optional[torch.Tensor] = None, scale: Optional[float] = None, softcap: float = 0.0,
                    window: int = 0, causal: bool = False):
    """query [B, S, Hq, D], key and value [B, Hk, T, D] -> out like query, lse [B, Hq, S] (no gradient through it)."""
    if mask is not None and mask.requires_grad:
        raise ValueError("[attention] mask: expected a tensor without gradient, got one that requires it")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _Attention.apply(_rows(query), _rows(key), _rows(value), mask, sinks, (scale, softcap, window, causal))


def attention_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens_q: torch.Tensor,
                     cu_seqlens_k: torch.Tensor, sinks: Optional[torch.Tensor] = None,
                     scale: Optional[float] = None, softcap: float = 0.0, window: int = 0, causal: bool = False):
    """query [N, Hq, D], key and value [M, Hk, D], starts int32 -> out like query, lse [Hq, N]."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _Varlen.apply(_rows(query), _rows(key), _rows(value), cu_seqlens_q, cu_seqlens_k, sinks,
                         (scale, softcap, window, causal))


__all__ = ["attention_train", "attention_varlen"]
