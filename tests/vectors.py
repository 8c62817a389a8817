"""The reference vectors of tests/vectors.json by name."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Vector:
    inputs: dict[str, Any]
    params: dict[str, Any]
    expected: dict[str, Any]
    bug_values: dict[str, Any]
    tolerance: float

    def tensor(self, name: str) -> Tensor:
        return torch.tensor(self.inputs[name], dtype=torch.float64)

    def check(self, value: Any, key: str) -> None:
        """The value is the expected one, to the vector's tolerance."""
        np.testing.assert_allclose(_array(value), _array(self.expected[key]), rtol=0, atol=self.tolerance)

    def check_no_bug(self, value: Any, *names: str) -> None:
        """The value is none of the recorded wrong ones (all of them, or those named)."""
        assert self.bug_values, "this vector records no wrong values"
        for name in names or self.bug_values:
            wrong = _array(self.bug_values[name])
            assert np.abs(_array(value) - wrong).max() > 10 * self.tolerance, f"this is the bug {name!r}"


def load(name: str) -> Vector:
    vector = _ALL[name]
    return Vector(
        vector["inputs"],
        vector["params"],
        vector["expected"],
        vector.get("bug_values", {}),
        vector["tolerance"],
    )


def _array(value: Any) -> Any:
    return np.asarray(value.detach() if isinstance(value, Tensor) else value, dtype=np.float64)


_ALL = {
    vector["name"]: vector
    for vector in json.loads((Path(__file__).parent / "vectors.json").read_text())["vectors"]
}
