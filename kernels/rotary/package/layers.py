import torch
import torch.nn as nn

from ._ops import add_op_namespace_prefix, ops

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# Shapes for tracing, symbolic sizes included: the library's own Meta op knows numbers only.
torch.library.register_fake(
    add_op_namespace_prefix("rotary"),
    lambda query, key, cos, sin, interleaved, inverse: (query.new_empty(query.shape), key.new_empty(key.shape)),
    allow_override=True)


class _Rotary(torch.autograd.Function):
    """The gradient of a rotation is the rotation by the negative angle."""

    @staticmethod
    def forward(ctx, query, key, cos, sin, inverse):
        ctx.save_for_backward(cos, sin)
        ctx.inverse = inverse
        return ops.rotary(query, key, cos, sin, False, inverse)

    @staticmethod
    def backward(ctx, grad_query, grad_key):
        cos, sin = ctx.saved_tensors
        grads = ops.rotary(_dense(grad_query), _dense(grad_key), cos, sin, False, not ctx.inverse)
        return (*grads, None, None, None)


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _rotate(query, key, cos, sin, inverse):
    query, key, cos, sin = _dense(query), _dense(key), _dense(cos), _dense(sin)
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return _Rotary.apply(query, key, cos, sin, inverse)
    return ops.rotary(query, key, cos, sin, False, inverse)


def _apply(query, key, cos, sin, unsqueeze_dim, inverse=False, half_tables=False, cast_back=False):
    heads_first = unsqueeze_dim == 1
    if heads_first:
        query, key = query.transpose(1, 2), key.transpose(1, 2)
    if half_tables:
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)
    dtype = query.dtype
    if cos.dtype != dtype:  # as PyTorch promotes; some families cast the result back
        wide = torch.promote_types(cos.dtype, dtype)
        query, key, cos, sin = query.to(wide), key.to(wide), cos.to(wide), sin.to(wide)
    query, key = _rotate(query, key, cos, sin, inverse)
    if cast_back:
        query, key = query.to(dtype), key.to(dtype)
    return (query.transpose(1, 2), key.transpose(1, 2)) if heads_first else (query, key)


class apply_rotary_transformers(nn.Module):
    """transformers' apply_rotary_pos_emb: query [B, Hq, S, D], key [B, Hk, S, D], tables [B or 1, S, D].

    unsqueeze_dim=2: heads after positions. What families differ in stands in attributes of the adopting module:
    graft_inverse (nanochat turns the other way), graft_half_tables (gpt_oss: tables of D / 2), graft_cast_back
    (OLMo: wider tables, result in the query's dtype)."""

    can_torch_compile = True
    has_backward = True

    def forward(self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
                unsqueeze_dim: int = 1):
        if q.dtype not in _DTYPES and type(self).__module__ != __name__:
            return type(self).forward(self, q, k, cos, sin, unsqueeze_dim)
        return _apply(q, k, cos, sin, unsqueeze_dim, getattr(self, "graft_inverse", False),
                      getattr(self, "graft_half_tables", False), getattr(self, "graft_cast_back", False))


__all__ = ["apply_rotary_transformers"]
