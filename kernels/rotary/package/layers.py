import torch
import torch.nn as nn

from ._ops import ops


class _Rotary(torch.autograd.Function):
    """The gradient of a rotation is the rotation by the negative angle."""

    @staticmethod
    def forward(ctx, query, key, cos, sin):
        ctx.save_for_backward(cos, sin)
        return ops.rotary(query, key, cos, sin, False, False)

    @staticmethod
    def backward(ctx, grad_query, grad_key):
        cos, sin = ctx.saved_tensors
        return (*ops.rotary(_dense(grad_query), _dense(grad_key), cos, sin, False, True), None, None)


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _apply(query, key, cos, sin, unsqueeze_dim):
    heads_first = unsqueeze_dim == 1
    if heads_first:
        query, key = query.transpose(1, 2), key.transpose(1, 2)
    query, key = _Rotary.apply(_dense(query), _dense(key), _dense(cos), _dense(sin))
    return (query.transpose(1, 2), key.transpose(1, 2)) if heads_first else (query, key)


class apply_rotary_transformers(nn.Module):
    """transformers' apply_rotary_pos_emb: query [B, Hq, S, D], key [B, Hk, S, D], tables [B or 1, S, D].

    unsqueeze_dim=2: heads after positions."""

    can_torch_compile = True
    has_backward = True

    def forward(self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
                unsqueeze_dim: int = 1):
        return _apply(q, k, cos, sin, unsqueeze_dim)


__all__ = ["apply_rotary_transformers"]
