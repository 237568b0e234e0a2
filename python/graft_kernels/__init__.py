"""graft's kernel packages in Python `transformers`: right in every numeric variant, on the CPU and on CUDA.

    model = AutoModelForCausalLM.from_pretrained(..., use_kernels=True, kernel_config=graft_kernels.kernel_config())
    model = graft_kernels.kernelize(model)      # the same without the library `kernels`
    print(graft_kernels.report(model))
"""

from .config import kernel_config
from .errors import GraftError
from .hub import hub_dir, package_dir
from .swap import Mode, kernelize, unkernelize
from .table import report

__all__ = ["GraftError", "Mode", "hub_dir", "kernel_config", "kernelize", "package_dir", "report", "unkernelize"]
