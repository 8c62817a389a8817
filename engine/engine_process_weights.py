"""Weights by name -> one block of memory that two processes see, and back: copied once on either side."""

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import BinaryIO

import torch
from torch import Tensor

from verigrad.engine.rollout import SamplerError

ALIGNED = 64  # bytes

Place = tuple[str, str, tuple[int, ...], int]
"""Name, dtype ("float32"), shape and offset in bytes of one weight."""


def new_file() -> BinaryIO:
    """A file without a name, held in memory where the system can: it is gone when nobody has it open."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("verigrad-weights"), "w+b")
    return tempfile.TemporaryFile()


class SharedWeights:
    """The block, as written by the trainer and read by the sampler; they take turns."""

    def __init__(self, handle: int, places: Sequence[Place], size: int) -> None:
        """`handle`: the file descriptor of `new_file`, at least `size` bytes long."""
        self.places = list(places)
        block = torch.frombuffer(mmap.mmap(handle, size), dtype=torch.uint8)
        self._views = {name: _view(block, dtype, shape, offset) for name, dtype, shape, offset in places}

    @classmethod
    def of(cls, handle: int, weights: Iterable[tuple[str, Tensor]]) -> "SharedWeights":
        """A block with room for these weights, written. Raises SamplerError where memory does not suffice."""
        held = list(weights)
        places: list[Place] = []
        size = 0
        for name, weight in held:
            places.append((name, str(weight.dtype).removeprefix("torch."), tuple(weight.shape), size))
            size += -(-weight.numel() * weight.element_size() // ALIGNED) * ALIGNED
        try:
            os.ftruncate(handle, size)
            if hasattr(os, "posix_fallocate"):  # a page that cannot be had would end the process when touched
                os.posix_fallocate(handle, 0, size)
        except OSError as error:
            raise SamplerError(
                f"no memory for the {size / 2**30:.2g} GiB through which weights go to the sampler's process "
                f"({error.strerror}); free some, or set rollout.engine_process = false"
            ) from error
        block = cls(handle, places, size)
        block.write(held)
        return block

    @property
    def size(self) -> int:
        """Bytes."""
        name, _, _, offset = self.places[-1]
        weight = self._views[name]
        return offset + -(-weight.numel() * weight.element_size() // ALIGNED) * ALIGNED

    def write(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Put all of them into their places."""
        missing = set(self._views)
        for name, weight in weights:
            place = self._views.get(name)
            if place is None or place.shape != weight.shape:
                raise SamplerError(f"the trainer sent a weight {name!r} that was not there at first")
            place.copy_(weight)
            missing.discard(name)
        if missing:
            raise SamplerError(
                f"the trainer did not send {len(missing)} weights, {min(missing)!r} among them"
            )

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """All of them, as views of the block: to be copied before the next `write`."""
        yield from self._views.items()


def _view(block: Tensor, dtype: str, shape: Sequence[int], offset: int) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    return block[offset : offset + prod(shape) * kind.itemsize].view(kind).view(tuple(shape))
