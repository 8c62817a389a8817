"""One measured run of TRL's DPOTrainer, in TRL's environment: python trl_dpo_side.py JOB.json OUT.json.

TRL by its documented API, with its own defaults but for the work itself. The pairs come in the file's order.
Its option `padding_free` is off, as TRL 1.16 has it disabled.
"""

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")


def main(job: dict[str, Any], out: Path) -> None:
    """Train as the job says, and write what the steps took."""
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["model_folder"])
    model = AutoModelForCausalLM.from_pretrained(
        job["model_folder"], dtype=torch.float32, attn_implementation="sdpa"
    )
    rows = [json.loads(line) for line in Path(job["pairs_file"]).read_text().splitlines()]

    class InOrder(trl.DPOTrainer):  # type: ignore[misc]
        """DPOTrainer without shuffling."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    mark = marker()
    trainer = InOrder(
        model=model,
        args=settings(job, out.parent),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[mark],
        optimizers=(optimizer(model, job), None),
    )
    for printing in (transformers.PrinterCallback, transformers.ProgressCallback):
        trainer.remove_callback(printing)
    trainer.train()
    logged = [log for log in trainer.state.log_history if "loss" in log]
    steps = [
        {**step, "loss": log["loss"], "logprobs_chosen": log["logps/chosen"]}
        for step, log in zip(mark.steps, logged, strict=True)
    ]
    record = {
        "steps": steps,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    out.write_text(json.dumps(record))


def settings(job: dict[str, Any], folder: Path) -> Any:
    """DPOConfig: the job's work; everything else as TRL has it."""
    import torch
    import trl

    return trl.DPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        fp16=False,
        per_device_train_batch_size=job["pairs"],
        max_steps=job["steps"],
        max_length=job["longest"],
        beta=job["beta"],
        precompute_ref_log_probs=job["precompute"],
        learning_rate=job["lr"],
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=job["seed"],
    )


def optimizer(model: Any, job: dict[str, Any]) -> Any:
    """AdamW with the numbers of the other side."""
    import torch

    return torch.optim.AdamW(
        model.parameters(),
        lr=job["lr"],
        betas=tuple(job["betas"]),
        eps=job["eps"],
        weight_decay=0.0,
        fused=True,
    )


def marker() -> Any:
    """A callback that notes when each step was logged; the first step's time holds what came before."""
    from transformers import TrainerCallback

    class Mark(TrainerCallback):  # type: ignore[misc]
        """See marker."""

        def __init__(self) -> None:
            self.steps: list[dict[str, float]] = []
            self.before = time.perf_counter(), time.process_time()

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """A step is done once it is logged, as on the other side."""
            now = time.perf_counter(), time.process_time()
            if len(self.steps) < args.max_steps:
                self.steps.append({"wall_s": now[0] - self.before[0], "cpu_s": now[1] - self.before[1]})
            self.before = now

    return Mark()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
