import torch
import torch.nn as nn

from ._ops import ops


class RMSNorm(nn.Module):
    weight: torch.Tensor
    variance_epsilon: float

    can_torch_compile = True
    has_backward = False

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(hidden_states, self.weight, self.variance_epsilon, 0)


__all__ = ["RMSNorm"]
