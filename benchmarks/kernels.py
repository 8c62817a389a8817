"""The loss layer's kernels against PyTorch, torch.compile, Liger-Kernel and cut-cross-entropy: one work.

    python benchmarks/kernels.py [--device cuda|cpu] [--small] [--rounds N] [--threads N]

M tokens, hidden size H, vocabulary V. Three works: "policy", a clipped policy loss with an entropy bonus,
forward and backward to hidden states and head; "policy_no_entropy", the same without the bonus, for those
who have none; "forward", log-probabilities and entropies alone. Sides take turns within a round on the same
inputs (bfloat16 on a GPU, float32 on a CPU). Of each: median time, peak memory above the inputs, and the
share of the least time that the products need at the machine's peak: 6 M H V operations, 2 M H V for
"forward". The peak is 790 TFLOP/s on an H200, elsewhere a measured product's. Each loss is compared with
PyTorch's.

What cannot run says so and why. A row for each work and shape is appended to
benchmarks/results/kernels.jsonl. Liger-Kernel and cut-cross-entropy are measured where they are installed:
pip install --no-deps liger-kernel cut-cross-entropy
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path


def step_aside() -> None:
    """Put the package of this name, if it is installed, in this file's place.

    transformers imports it by name, and where a benchmark is the program this folder is searched first.
    """
    here = Path(__file__).resolve().parent
    elsewhere = [place for place in sys.path if Path(place or ".").resolve() != here]
    spec = importlib.machinery.PathFinder.find_spec(__name__, elsewhere)
    if spec is None or spec.loader is None or spec.origin is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[__name__] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    import kernel_race

    kernel_race.main(__doc__)
else:
    step_aside()
