from typing import Optional

import torch
import torch.nn as nn

from ._ops import ops


class _JoinedLinears(torch.autograd.Function):
    """Products of one input, which gets one gradient: each product adds to it what the one before it left."""

    @staticmethod
    def forward(ctx, x, count, *parameters):
        weights, biases = parameters[:count], parameters[count:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *weights)
        return tuple(nn.functional.linear(x, weight, bias) for weight, bias in zip(weights, biases))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        x, *weights = ctx.saved_tensors
        needs_x, _, *needs = ctx.needs_input_grad
        rows, grad_x = x.reshape(-1, x.shape[-1]), None
        grads = [None if grad is None else grad.reshape(-1, grad.shape[-1]) for grad in grads]
        for grad, weight in zip(grads, weights):
            if needs_x and grad is not None:
                grad_x = grad @ weight if grad_x is None else grad_x.addmm_(grad, weight)
        of_weights = [grad.t() @ rows if grad is not None and need else None for grad, need in zip(grads, needs)]
        of_biases = [grad.sum(0) if grad is not None and need else None
                     for grad, need in zip(grads, needs[len(weights):])]
        return (None if grad_x is None else grad_x.view(x.shape), None, *of_weights, *of_biases)


class JoinedLinears(nn.Module):
    """Linear layers of one input, in training."""

    can_torch_compile = False
    has_backward = True

    @staticmethod
    def join(x: torch.Tensor, parts: list) -> tuple:
        """The results of all (weight, bias or None) for x. Differentiable once."""
        weights, biases = zip(*parts)
        return _JoinedLinears.apply(x, len(parts), *weights, *biases)


class Linear(nn.Module):
    weight: torch.Tensor
    bias: Optional[torch.Tensor]

    can_torch_compile = True
    has_backward = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return ops.linear(input, self.weight, self.bias)


__all__ = ["JoinedLinears", "Linear"]
