import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def _rms_norm_kernel(out, x, weight, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    inside = offsets < columns
    value = tl.load(x + row * columns + offsets, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / columns + eps)
    normed = (value * scale).to(x.dtype.element_ty)
    factor = tl.load(weight + offsets, mask=inside, other=0.0)
    tl.store(out + row * columns + offsets, normed * factor, mask=inside)


class TritonRMSNorm(nn.Module):
    """One row a program; the block is as wide as the row, so a compiled kernel serves one width."""

    weight: torch.Tensor
    variance_epsilon: float
    can_torch_compile = True
    has_backward = False

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.contiguous()
        out = torch.empty_like(rows)
        columns = rows.shape[-1]
        _rms_norm_kernel[(rows.numel() // columns,)](out, rows, self.weight, columns, self.variance_epsilon,
                                                     BLOCK=triton.next_power_of_2(columns))
        return out
