"""Reward models of a few thousand random weights, for tests: a folder each, made in a moment."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from verigrad.engine.recipes import small_talk
from verigrad.engine.reward_card import Card


def make(folder: Path, card: Card, *, seed: int = 0, hidden_size: int = 32) -> Path:
    """A Hugging Face folder with reward.json; the kind is the card's."""
    alphabet = small_talk.new_alphabet()
    base = folder / "base"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        alphabet.llama(hidden_size, 1, num_heads=1, num_kv_heads=1).save_pretrained(base)
        steps = card.kind == "steps"
        kind = AutoModelForTokenClassification if steps else AutoModelForSequenceClassification
        kind.from_pretrained(base, num_labels=2 if steps else 1).save_pretrained(folder)
    alphabet.tokenizer().save_pretrained(folder)
    card.save(folder)
    return folder


def ensemble(folder: Path, *, members: int = 2) -> Path:
    """Members of different seeds, and the card that joins them."""
    card = Card(mean=0.1, std=0.5)
    for number in range(1, members + 1):
        make(folder / f"member_{number}", card, seed=number)
    replace(card, kind="ensemble", members=members, mean=0.2, std=2.0).save(folder)
    return folder
