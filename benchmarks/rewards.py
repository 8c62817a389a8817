"""The check that pays both sides of a race: the same function, called in each side's own way."""

LOW = frozenset("0123456789+-*/=()., ;:<>?{}%\nabcd")


def starts_low(text: str) -> bool:
    """Right if the first character comes early among the model's: about half of an untrained model's do."""
    return text[:1] in LOW
