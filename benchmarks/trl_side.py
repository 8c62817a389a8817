"""One measured run of TRL's GRPOTrainer, in TRL's environment: python trl_side.py JOB.json OUT.json.

TRL by its documented API. `engine` is "transformers" (as it comes) or "vllm": its colocate mode with two
changes, without which it does not run on a CPU. (1) Weights go over by vLLM's reload_weights: TRL loads them
one by one, and vLLM's CPU build has repacked its layers by then. (2) vLLM is given the trainer's dtype, and
told not to compile. On a GPU it is left as it is.
"""

import functools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

warnings.filterwarnings("ignore")


def main(job: dict[str, Any], out: Path) -> None:
    """Train as the job says, and write what the steps took."""
    import torch
    import transformers
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if job["engine"] == "vllm":
        import vllm  # noqa: F401 - it is imported anyway, and is not what a run needs memory for
    imports_mib = psutil.Process().memory_info().rss / 2**20
    torch.manual_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.float32, attn_implementation="sdpa"
    )
    if job["engine"] == "vllm" and not torch.cuda.is_available():
        make_vllm_run_on_a_cpu()
    clock = Clock()
    reward = reward_function(job, clock)
    trainer = trl.GRPOTrainer(
        model=model,
        args=settings(job, out.parent),
        train_dataset=rows(job),
        reward_funcs=reward,
        processing_class=tokenizer,
        callbacks=[callback(job, clock, model, tokenizer)],
        optimizers=(optimizer(model, job["optim"]), None),
    )
    for printing in (transformers.PrinterCallback, transformers.ProgressCallback):
        trainer.remove_callback(printing)
    clock.watch(trainer, "_generate_single_turn", "generate")
    clock.watch(trainer, "_generate_and_score_completions", "generate_and_score")
    clock.watch(trainer, "training_step", "training_step")
    if job["engine"] == "vllm":
        clock.watch(trainer.vllm_generation, "sync_weights", "sync")
    trainer.train()
    on_gpu = torch.cuda.is_available()
    record = {
        "steps": clock.steps,
        "imports_mib": imports_mib,
        "peak_gpu_mib": torch.cuda.max_memory_reserved() / 2**20 if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "evals": clock.evals,
    }
    out.write_text(json.dumps(record))


def settings(job: dict[str, Any], folder: Path) -> Any:
    """GRPOConfig: the job's work; everything else as TRL has it."""
    import torch
    import trl

    per_update = job["groups"] * job["samples"] // job["minibatches"]
    vllm = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.3,
        "vllm_max_model_length": job["max_prompt_tokens"] + job["max_tokens"],
    }
    return trl.GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        fp16=False,
        per_device_train_batch_size=per_update,
        steps_per_generation=job["minibatches"],
        num_generations=job["samples"],
        max_completion_length=job["max_tokens"],
        max_steps=job["steps"] * job["minibatches"],
        temperature=1.0,
        beta=0.0,
        epsilon=job["clip"][0],
        epsilon_high=job["clip"][1],
        max_grad_norm=job["optim"]["max_grad_norm"],
        gradient_checkpointing=False,
        shuffle_dataset=job["shuffle"],
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=job["seed"],
        **(vllm if job["engine"] == "vllm" else {}),
    )


def optimizer(model: Any, optim: dict[str, Any]) -> Any:
    """AdamW with the job's numbers; `warmup_steps` is taken care of by the callback."""
    import torch

    return torch.optim.AdamW(
        model.parameters(),
        lr=optim["lr"],
        betas=tuple(optim["betas"]),
        eps=optim["eps"],
        weight_decay=optim["weight_decay"],
    )


def rows(job: dict[str, Any]) -> Any:
    """The job's problems as a data set; a prompt ends with what the completion must begin with."""
    from datasets import Dataset

    problems = [json.loads(line) for line in Path(job["problems"]).read_text().splitlines()]
    return Dataset.from_list([{"prompt": p["prompt"], "answer": str(p["answer"])} for p in problems])


class Clock:
    """Seconds by phase, tokens, and a mark at the end of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.evals: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.lengths: list[int] = []
        self.rewards: list[float] = []
        self.started = time.perf_counter(), time.process_time()

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """Add a method's time to a phase."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

        setattr(owner, name, timed)

    def mark(self) -> None:
        """A step is done. TRL's methods lie within each other: what is told is each one's own part."""
        now = time.perf_counter(), time.process_time()
        s = {"generate": 0.0, "sync": 0.0, "generate_and_score": 0.0, "training_step": 0.0} | self.seconds
        self.steps.append(
            {
                "step": len(self.steps) + 1,
                "wall_s": now[0] - self.started[0],
                "cpu_s": now[1] - self.started[1],
                "phases_s": {
                    "generate": s["generate"] - s["sync"],
                    "verify": s["generate_and_score"] - s["generate"],
                    "update": s["training_step"] - s["generate_and_score"],
                    "sync": s["sync"],
                },
                "generated_tokens": sum(self.lengths),
                "trained_tokens": sum(self.lengths),
                "longest": max(self.lengths, default=0),
                "rollouts": len(self.lengths),
                "reward": sum(self.rewards) / max(1, len(self.rewards)),
            }
        )
        self.seconds, self.lengths, self.rewards = {}, [], []
        self.restart()

    def restart(self) -> None:
        """What happened since the last mark does not count."""
        self.started = time.perf_counter(), time.process_time()


def reward_function(job: dict[str, Any], clock: Clock) -> Callable[..., list[float | None]]:
    """The same check as the other side's, called as TRL calls rewards."""
    check = judge(job)

    def reward(
        completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any
    ) -> list[float | None]:
        paid = [check(text, given) for text, given in zip(completions, answer, strict=True)]
        clock.lengths += [len(ids) for ids in completion_ids]
        clock.rewards += [value for value in paid if value is not None]
        return paid

    return reward


def judge(job: dict[str, Any]) -> Callable[[str, str], float | None]:
    """(completion, answer) -> reward, None where undecided."""
    if job["verifier"] == "starts_low":
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        from rewards import starts_low

        return lambda text, answer: float(starts_low(text))
    from verigrad.verifiers import registry
    from verigrad.verifiers.base import Attempt, Problem

    verifier = registry.load(job["verifier"])

    def check(text: str, answer: str) -> float | None:
        return verifier.judge(Problem("", "", answer), [Attempt(job["prefill"] + text)])[0].reward

    return check


def callback(job: dict[str, Any], clock: Clock, model: Any, tokenizer: Any) -> Any:
    """Marks steps, sets the warm-up's learning rate, and evaluates while the clock stands still."""
    from transformers import TrainerCallback

    class Mark(TrainerCallback):  # type: ignore[misc]
        """See callback."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The first evaluation."""
            self.evaluate(0)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The learning rate of the step to come."""
            step = state.global_step // job["minibatches"] + 1
            for group in kwargs["optimizer"].param_groups:
                group["lr"] = job["optim"]["lr"] * min(
                    1.0, step / max(1, job["optim"].get("warmup_steps", 0))
                )

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """A step is as many optimizer steps as one batch of rollouts gives."""
            if state.global_step % job["minibatches"]:
                return
            clock.mark()
            step = state.global_step // job["minibatches"]
            spent = sum(done["wall_s"] for done in clock.steps)
            last = step == job["steps"] or spent > job.get("limit_s", math.inf)
            control.should_training_stop = last
            self.evaluate(step, last=last)

        def evaluate(self, step: int, *, last: bool = False) -> None:
            """One answer to each held-out problem, judged by the same verifier."""
            if job.get("eval_every") and (last or step % job["eval_every"] == 0):
                clock.evals.append({"step": step, "scores": held_out_scores(job, model, tokenizer)})
            clock.restart()

    return Mark()


def held_out_scores(job: dict[str, Any], model: Any, tokenizer: Any, *, at_once: int = 350) -> list[float]:
    """1 or 0 of each held-out problem, in order."""
    import torch

    problems = [json.loads(line) for line in Path(job["held_out"]).read_text().splitlines()]
    check, scores = judge(job), []
    model.eval()
    for start in range(0, len(problems), at_once):
        batch = problems[start : start + at_once]
        inputs = tokenizer([p["prompt"] for p in batch], return_tensors="pt", padding=True).to(model.device)
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            ids = model.generate(
                **inputs,
                do_sample=True,
                temperature=job["eval_temperature"],
                top_k=0,
                top_p=1.0,
                max_new_tokens=job["max_tokens"],
            )
        texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        scores += [check(text, str(p["answer"])) or 0.0 for text, p in zip(texts, batch, strict=True)]
    model.train()
    return scores


def make_vllm_run_on_a_cpu() -> None:
    """The two changes; see above."""
    from trl.generation import vllm_generation as place

    def push(self: Any) -> None:
        weights = [(name, weight.data) for name, weight in self.model.named_parameters()]
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.reset_prefix_cache()

    place.VLLMGeneration.sync_weights = push
    place.LLM = functools.partial(place.LLM, dtype="float32", enforce_eager=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
