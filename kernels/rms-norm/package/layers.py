import torch
import torch.nn as nn

from ._ops import ops


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


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


class RMSNorm(nn.Module):
    """LlamaRMSNorm and its like: the weight multiplies what was cast back to the input's dtype."""

    weight: torch.Tensor
    variance_epsilon: float

    can_torch_compile = True
    has_backward = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon, 0)


__all__ = ["RMSNorm"]
