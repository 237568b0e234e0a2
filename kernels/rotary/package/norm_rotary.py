"""RMSNorm of the heads of query and key, and their rotation, in one call; for one new token also into a cache."""

from typing import Tuple

import torch

from ._ops import add_op_namespace_prefix, ops

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ZERO_CENTERED = 3


# Shapes for tracing, symbolic sizes included: the library's own Meta ops know numbers only.
torch.library.register_fake(
    add_op_namespace_prefix("norm_rotary"),
    lambda query, key, query_weight, key_weight, cos, sin, eps, variant, interleaved:
    (query.new_empty(query.shape), key.new_empty(key.shape)),
    allow_override=True)


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _norm_gradients(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, variant: int):
    """Of x and of the weight; the norm is made again from x."""
    wide, grad = x.float(), grad.float()
    inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    norm = wide * inverse
    rounded = norm.to(x.dtype).float() if variant == 0 else norm
    incoming = grad * (weight.float() + 1.0 if variant == _ZERO_CENTERED else weight.float())
    grad_x = inverse * (incoming - norm * (incoming * norm).mean(-1, keepdim=True))
    return grad_x.to(x.dtype), (grad * rounded).sum(tuple(range(x.dim() - 1))).to(weight.dtype)


class _NormRotary(torch.autograd.Function):
    """The rotation the other way, by the package's op, and then the gradient of a norm that is made again."""

    @staticmethod
    def forward(ctx, query, key, query_weight, key_weight, cos, sin, *options):
        ctx.save_for_backward(query, key, query_weight, key_weight, cos, sin)
        ctx.options = options
        return ops.norm_rotary(query, key, query_weight, key_weight, cos, sin, *options)

    @staticmethod
    def backward(ctx, grad_query, grad_key):
        query, key, query_weight, key_weight, cos, sin = ctx.saved_tensors
        eps, variant, interleaved = ctx.options
        grad_query, grad_key = ops.rotary(_dense(grad_query), _dense(grad_key), cos, sin, interleaved, True)
        grad_query, grad_query_weight = _norm_gradients(grad_query, query, query_weight, eps, variant)
        grad_key, grad_key_weight = _norm_gradients(grad_key, key, key_weight, eps, variant)
        grads = (grad_query, grad_key, grad_query_weight, grad_key_weight)
        return (*(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad)),
                None, None, None, None, None)


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float, variant: int) -> torch.Tensor:
    norm = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return norm * (1.0 + weight if variant == _ZERO_CENTERED else weight)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    width = cos.shape[-1]
    head, rest = x[..., :width], x[..., width:]
    if interleaved:
        turned = torch.stack((-head[..., 1::2], head[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = head.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
    return torch.cat((head * cos.unsqueeze(2) + turned * sin.unsqueeze(2), rest), dim=-1)


def norm_rotary(query: torch.Tensor, key: torch.Tensor, query_weight: torch.Tensor, key_weight: torch.Tensor,
                cos: torch.Tensor, sin: torch.Tensor, eps: float = 1e-6, variant: int = 0,
                interleaved: bool = False) -> Tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm over the heads of query [B, S, Hq, D] and key [B, S, Hk, D], each by its weight [D], then the rotation by
    tables [B or 1, S, R]: what the norms and the rotation leave one after another, the norm rounded to the heads' dtype.

    variant is the norm's: 0 rounds before the weight (Llama, Qwen), 1 and 2 after it, 3 multiplies by 1 + weight
    (Gemma). Differentiable in query, key and the weights; float64 is computed by PyTorch."""
    if query.dtype not in _DTYPES:
        return tuple(_rotated(_normed(x, weight, eps, variant), cos, sin, interleaved)
                     for x, weight in ((query, query_weight), (key, key_weight)))
    query, key, cos, sin = _dense(query), _dense(key), _dense(cos), _dense(sin)
    tensors = (query, key, query_weight, key_weight)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _NormRotary.apply(*tensors, cos, sin, eps, variant, interleaved)
    return ops.norm_rotary(*tensors, cos, sin, eps, variant, interleaved)


def norm_rotary_append(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor,
                       values: torch.Tensor, query_weight: torch.Tensor, key_weight: torch.Tensor, cos: torch.Tensor,
                       sin: torch.Tensor, lengths: torch.Tensor, positions: torch.Tensor, eps: float = 1e-6,
                       variant: int = 0, interleaved: bool = False) -> torch.Tensor:
    """norm_rotary of one new token a row: returns the query [B, 1, Hq, D] and puts the key, and the value [B, 1, Hk, D]
    as it is, at place lengths[b] - 1 of keys and values [B, Hk, T, D].

    cos, sin [P, R] are those of all positions, of which positions [B] (int32, as lengths) names the rows. A row whose
    place or position lies outside is left alone, its query undefined. No gradient."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    ops.norm_rotary_append_out(out, keys, values, _dense(query), _dense(key), _dense(value), query_weight, key_weight,
                               _dense(cos), _dense(sin), lengths, positions, eps, variant, interleaved)
    return out
