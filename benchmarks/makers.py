"""The model and the problems that both sides of a race are given."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

NAMED_TOKENS = ("<pad>", "<bos>", "<unk>")
CHARACTERS = "0123456789+-*/=()., ;:<>?{}%\nabcdefghijklmnopqrstuvwxyz!@#$&ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PAD, BOS = 0, 1


def model(
    folder: Path,
    *,
    seed: int,
    progress: Callable[[str, float], None],
    hidden_size: int,
    num_layers: int,
    vocab_size: int,
    ends: bool,
    max_positions: int = 1024,
) -> None:
    """An untrained Llama with one token per character, written to `folder`.

    Its logits are nearly alike, so each of its tokens comes with a probability near 1 / vocab_size. With
    `ends` the end-of-sequence token is one of them and lengths are spread geometrically, with a mean near
    vocab_size; without, its probability is exactly 0 and no completion ever ends by itself.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    eos = vocab_size - 1
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=eos,
        pad_token_id=PAD,
    )
    llama = LlamaForCausalLM(config)
    if not ends:
        forbid(llama, eos)
    llama.save_pretrained(folder)
    tokenizer(vocab_size, eos=eos, max_positions=max_positions).save_pretrained(folder)
    progress("race model", 1.0)


@torch.no_grad()
def forbid(llama: Any, token: int) -> None:
    """Make a token's probability exactly 0 in float32, by the weights alone.

    Every embedding gets the same positive first component, no layer writes to it, and the output head takes
    it times -10,000 for this token.
    """
    llama.model.embed_tokens.weight[:, 0] = 0.1
    for layer in llama.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    llama.lm_head.weight[token, 0] = -1e4


def tokenizer(vocab_size: int, *, eos: int, max_positions: int) -> Any:
    """One token per character; ids without a character are reserved words, the end of sequence is `eos`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*NAMED_TOKENS, *CHARACTERS]
    words = (words + [f"<reserved{i}>" for i in range(vocab_size)])[:vocab_size]
    words[eos] = "<eos>"
    ids = {word: i for i, word in enumerate(words)}
    raw = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=max_positions,
    )


def write_problems(path: Path, *, seed: int, num_problems: int, prompt_tokens: int) -> None:
    """Rows {prompt, answer} like `12+34=`, as JSON lines.

    With `prompt_tokens`, a text of random letters goes before the sum, different for each problem, and the
    prompt has exactly that many tokens, the begin-of-sequence token among them.
    """
    rng = random.Random(f"race problems {seed}")
    lines = []
    for _ in range(num_problems):
        a, b = rng.randrange(100), rng.randrange(100)
        question = f"{a}+{b}="
        missing = max(0, prompt_tokens - 1 - len(question))
        filler = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(missing))
        lines.append(json.dumps({"prompt": filler + question, "answer": str(a + b)}) + "\n")
    path.write_text("".join(lines))
