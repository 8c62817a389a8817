"""What operations are called with: the largest tensor, and matrix products."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Records the largest tensor any operation returned, and counts matrix products and their tokens."""

    def __init__(self):
        super().__init__()
        self.largest = self.num_products = 0
        self.rows_multiplied = set()  # tokens of each product

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._opname in {"mm", "mm_", "addmm", "addmm_", "linear", "bmm"}:
            self.num_products += func._opname != "bmm"
            if func._opname == "mm":
                left, right = args[0], args[1]
                # logits and gradients of hidden states have a row, the head's gradient an inner, for each
                self.rows_multiplied.add(min(left.shape[0], left.shape[1], right.shape[1]))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result
