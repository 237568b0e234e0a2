import torch
import torch.nn as nn

from ._ops import add_op_namespace_prefix, ops

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _fake(name: str, function) -> None:
    """Shapes for tracing, symbolic sizes included: the library's own Meta ops know numbers only, and a graph of
    theirs would hold for one length of input."""
    torch.library.register_fake(add_op_namespace_prefix(name), function, allow_override=True)


def _result_dtype(x: torch.Tensor, weight: torch.Tensor, variant: int) -> torch.dtype:
    return torch.promote_types(x.dtype, weight.dtype) if variant == 0 else x.dtype


_fake("rms_norm", lambda x, weight, eps, variant: x.new_empty(x.shape, dtype=_result_dtype(x, weight, variant)))
_fake("rms_norm_backward", lambda grad_out, x, weight, eps, variant: (x.new_empty(x.shape), torch.empty_like(weight)))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps, variant):
        x = _rows(x)
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.variant = eps, variant
        return ops.rms_norm(x, weight, eps, variant)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = ops.rms_norm_backward(_rows(grad), x, weight, ctx.eps, ctx.variant)
        return grad_x, grad_weight, None, None


def _forward(module: nn.Module, x: torch.Tensor, default_variant: int) -> torch.Tensor:
    """`graft_variant` names where the adopting class rounds; upstream's protocol has no place to say it.

    Under autocast the input is narrower than the weight, and a float64 model exists too: both keep the formula
    of the adopting class, since the result's dtype follows from it."""
    weight = module.weight
    unusual = x.dtype != weight.dtype or x.dtype not in _DTYPES
    if unusual and type(module).__module__ != __name__:
        return type(module).forward(module, x)
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    variant = getattr(module, "graft_variant", default_variant)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(x, weight, eps, variant)
    return ops.rms_norm(_rows(x), weight, eps, variant)


class RMSNorm(nn.Module):
    """LlamaRMSNorm and its like: the weight multiplies what was cast back to the input's dtype."""

    weight: torch.Tensor
    variance_epsilon: float
    graft_variant: int

    can_torch_compile = True
    has_backward = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return _forward(self, hidden_states, 0)


class RMSNormZeroCentered(nn.Module):
    """Gemma's: the factor is 1 + weight, and rounding comes last."""

    weight: torch.Tensor
    eps: float
    graft_variant: int

    can_torch_compile = True
    has_backward = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return _forward(self, hidden_states, 3)


__all__ = ["RMSNorm", "RMSNormZeroCentered"]
