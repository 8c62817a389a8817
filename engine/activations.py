"""A model's forward pass -> the same, with what its backward pass needs kept on the host."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

LEAST_BYTES = 2**20  # smaller tensors stay: a copy costs more than their memory is worth

Kept = Tensor | tuple[torch.device, Tensor]


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def offloaded(
    model: nn.Module, *, moves: Callable[[Tensor], bool] = _on_gpu, least_bytes: int = LEAST_BYTES
) -> AbstractContextManager[object]:
    """Within it, what autograd saves goes to the host's pinned memory, and comes back when it is needed.

    Copies go along with the computation and wait for none of it. Weights stay where they are, and so do
    small tensors. With gradient checkpointing what is saved is each layer's input: the GPU then holds the
    activations of one layer, whatever the number of layers. `moves` says which tensors may go.
    """
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(tensor: Tensor) -> Kept:
        small = tensor.numel() * tensor.element_size() < least_bytes
        if small or not moves(tensor) or tensor.untyped_storage().data_ptr() in weights:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        host.copy_(tensor, non_blocking=True)
        return tensor.device, host

    def unpack(kept: Kept) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        device, host = kept
        return host.to(device, non_blocking=True)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
