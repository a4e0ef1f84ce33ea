"""What bf16 costs: a reference's linear layers with their operands rounded."""

import torch
from torch.overrides import TorchFunctionMode

LINEAR = (torch.nn.functional.linear, torch.Tensor.matmul, torch.Tensor.__matmul__)


class Bf16Products(TorchFunctionMode):
    """Linear layers with both operands rounded to bf16; the sums and all else as they were.

    A linear layer is a product with a 2-D matrix: attention and the recurrences have more
    dimensions, or use einsum.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in LINEAR and args[1].dim() == 2:
            rounded = [a.bfloat16().to(a.dtype) for a in args[:2]]
            args = (*rounded, *args[2:])
        return func(*args, **(kwargs or {}))
