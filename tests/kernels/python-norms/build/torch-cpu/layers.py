import torch
import torch.nn as nn


class PlainRMSNorm(nn.Module):
    """As the Hub's layers are: `kernels` puts its forward on the model's own module."""

    weight: torch.Tensor
    variance_epsilon: float
    can_torch_compile = True
    has_backward = False

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(hidden_states.dtype)


class WrongRMSNorm(PlainRMSNorm):
    """Forgets eps, which shows on small values alone."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True))).to(hidden_states.dtype)


class OneWidthRMSNorm(PlainRMSNorm):
    """Serves rows of 32 elements and nothing else."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.float().view(-1, 4, 8)
        wide = wide * torch.rsqrt(wide.pow(2).mean((-1, -2), keepdim=True) + self.variance_epsilon)
        return self.weight * wide.view(hidden_states.shape).to(hidden_states.dtype)


class PlainSiLU(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return (input.float() * torch.sigmoid(input.float())).to(input.dtype)
