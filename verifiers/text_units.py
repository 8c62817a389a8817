"""A text -> its words or characters, counted so that spacing, case and invisible signs change nothing."""

import re
import unicodedata

INVISIBLE = {"Cf", "Cc", "Mn", "Me"}  # format and control characters, accents and other combining marks
# Scripts that do not put blanks between words: each character is a unit.
CLOSE = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{CLOSE}]|[^\W_{CLOSE}]+")
SYMBOL = re.compile(rf"[{CLOSE}]|[^\W_{CLOSE}]+|[^\w\s]|_")
MAX_VISIBLE = 200_000  # characters: single ones may stand for eighteen
MAX_WORD = 20  # letters; a longer run is cut into single characters: glued words must not count as one


def visible(text: str) -> str:
    """The text in one spelling: compatibility forms unified, case folded, no invisible signs and accents."""
    plain = unicodedata.normalize("NFKD", text)[:MAX_VISIBLE].casefold()
    bare = "".join(c for c in plain if c.isspace() or unicodedata.category(c) not in INVISIBLE)
    return unicodedata.normalize("NFC", bare)  # a Korean syllable is one character again


def words(text: str) -> list[str]:
    """Runs of letters and digits; punctuation and blanks only separate them."""
    return _cut(WORD.findall(visible(text)))


def symbols(text: str) -> list[str]:
    """Words, and every sign between them by itself."""
    return _cut(SYMBOL.findall(visible(text)))


def num_characters(text: str) -> int:
    """How many characters can be seen: no blanks, no accents by themselves, nothing of zero width."""
    return sum(not c.isspace() for c in visible(text))


def _cut(runs: list[str]) -> list[str]:
    return [unit for run in runs for unit in ([run] if len(run) <= MAX_WORD else run)]
