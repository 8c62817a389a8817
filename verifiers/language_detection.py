"""A text and a language -> how much of it is in that language: by script where that tells, else by lingua.

Lingua (the package `lingua-language-detector`) works offline; its models are loaded on first use: about 3 s
and 260 MiB for the languages of COMMON.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from verigrad.verifiers.text_units import WORD

# What a text is told apart from, besides the wanted language.
COMMON = (
    "en",
    "de",
    "fr",
    "es",
    "it",
    "pt",
    "nl",
    "pl",
    "tr",
    "id",
    "vi",
    "ru",
    "uk",
    "zh",
    "ja",
    "ko",
    "ar",
    "hi",
)
HAN = {"CJK", "HIRAGANA", "KATAKANA"}
SCRIPTS: dict[str, set[str]] = {
    "zh": {"CJK"}, "ja": HAN, "ko": {"HANGUL"}, "th": {"THAI"}, "el": {"GREEK"}, "he": {"HEBREW"},
    "hy": {"ARMENIAN"}, "ka": {"GEORGIAN"}, "bn": {"BENGALI"}, "gu": {"GUJARATI"}, "pa": {"GURMUKHI"},
    "ta": {"TAMIL"}, "te": {"TELUGU"}, "kn": {"KANNADA"}, "ml": {"MALAYALAM"}, "si": {"SINHALA"},
    "my": {"MYANMAR"}, "km": {"KHMER"}, "lo": {"LAO"}, "am": {"ETHIOPIC"}, "ne": {"DEVANAGARI"},
    "hi": {"DEVANAGARI"}, "mr": {"DEVANAGARI"}, "ar": {"ARABIC"}, "fa": {"ARABIC"}, "ur": {"ARABIC"},
    "ru": {"CYRILLIC"}, "uk": {"CYRILLIC"}, "be": {"CYRILLIC"}, "bg": {"CYRILLIC"}, "mk": {"CYRILLIC"},
    "kk": {"CYRILLIC"}, "mn": {"CYRILLIC"}, "sr": {"CYRILLIC", "LATIN"},
}  # fmt: skip
LATIN = {"LATIN"}
ALPHABETS = {"LATIN", "CYRILLIC", "GREEK"}  # whose single letters are variables
# Scripts that one language alone writes: nothing is left to tell apart.
TELLING = {
    "HANGUL", "THAI", "GREEK", "HEBREW", "ARMENIAN", "GEORGIAN", "BENGALI", "GUJARATI", "GURMUKHI", "TAMIL",
    "TELUGU", "KANNADA", "MALAYALAM", "SINHALA", "MYANMAR", "KHMER", "LAO", "ETHIOPIC",
}  # fmt: skip
# No language: formulas, code, addresses, tags, LaTeX commands, words with digits, single letters.
NO_LANGUAGE = re.compile(
    r"```.*?```|`[^`\n]*`|\$\$[^$]{1,3000}\$\$|\$[^$\n]{1,400}\$|\\\(.{0,3000}?\\\)|\\\[.{0,3000}?\\\]"
    r"|\\begin\{(?P<environment>\w{1,20}\*?)\}.{0,3000}?\\end\{(?P=environment)\}"
    r"|https?://\S+|(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+|</?\w[^<>\n]{0,80}>"
    r"|\\[A-Za-z]+(?:\s*\{[^{}\n]*\})*|\b\w*[\d_]\w*\b",
    re.DOTALL,
)
# Prose between dollar signs is no formula: four words in a row, or four characters without blanks.
PROSE = re.compile(r"(?:(?<![\\\w])[^\W\d_]{2,}[ ,]+){3}[^\W\d_]{2,}|[\u3040-\u30ff\u3400-\u9fff]{4}")
SEGMENT = re.compile(r"[.!?;:。！？；：…\n]+")  # noqa: RUF001 - full-width signs
MIN_WORDS = 3  # of a text with blanks, below which nothing is told
MIN_CHARACTERS = 6  # of a text without blanks
SURE, UNLIKELY = 0.3, 0.1  # lingua's confidence in the wanted language


def known_language(code: Any) -> bool:
    """Whether a text can be checked for this ISO 639-1 code; `zh-cn` is `zh`."""
    return isinstance(code, str) and (normal(code) in SCRIPTS or normal(code) in _lingua_languages())


def normal(code: str) -> str:
    """`zh-CN` as `zh`."""
    return re.split(r"[-_]", code.strip().lower())[0]


def is_in(text: str, code: str) -> bool:
    """Whether a text is in this language, names and short quotations aside; one too short to tell is."""
    share = language_share(text, code)
    return share is None or share >= 0.8


def prose(text: str) -> str:
    """The text without what has no language; words between the signs of a formula stay."""
    return NO_LANGUAGE.sub(_blank, text)


def _blank(match: re.Match[str]) -> str:
    found = match.group()
    hidden = found[0] in "$`\\" and not found.startswith("```")
    return re.sub(r"\\[A-Za-z]+|[$`{}\\]", " ", found) if hidden and PROSE.search(found) else " "


def language_of(text: str) -> str | None:
    """The likeliest of the common languages, or None for a text too short or too mixed to tell."""
    words = " ".join(match.group() for match in WORD.finditer(prose(text)))
    units = WORD.findall(words)
    scripts = Counter(_script(unit[0]) for unit in units)
    if not scripts or len(units) < MIN_WORDS:
        return None
    script = scripts.most_common(1)[0][0]
    if script in TELLING:
        return next(code for code, theirs in SCRIPTS.items() if script in theirs)
    value = _detector(COMMON).compute_language_confidence_values(prose(text))[0]
    return str(value.language.iso_code_639_1.name).lower() if value.value >= 0.5 else None


def language_share(text: str, code: str) -> float | None:
    """The share of a text's words that are in a language, in [0, 1]; None when it is too short to tell.

    A word is a run of letters, or one character of a script without blanks. Formulas, code, LaTeX, numbers
    and names do not count. Pieces too short to tell are told together.
    """
    code = normal(code)
    wanted = foreign = 0
    unsure: list[tuple[str, int]] = []
    for segment in SEGMENT.split(prose(text)):
        for piece, num_words, own in _pieces(segment, code):
            told = _told(piece, code) if own else False
            if told is None:
                unsure.append((piece, num_words))
            elif told:
                wanted += num_words
            else:
                foreign += num_words
    together = _told(" ".join(piece for piece, _ in unsure), code) if unsure else None
    if together is not None:
        num_unsure = sum(num_words for _, num_words in unsure)
        wanted, foreign = (wanted + num_unsure, foreign) if together else (wanted, foreign + num_unsure)
    return wanted / (wanted + foreign) if wanted + foreign else None


def _pieces(segment: str, code: str) -> Iterator[tuple[str, int, bool]]:
    """A segment's words by script: (the words, how many count, whether the language is written so)."""
    by_script: dict[str, list[str]] = {}
    for match in WORD.finditer(segment):
        by_script.setdefault(_script(match.group()[0]), []).append(match.group())
    scripts = SCRIPTS.get(code, LATIN)
    if by_script.keys() & {"HIRAGANA", "KATAKANA"} and "CJK" in by_script:  # Japanese, with its kanji
        by_script["HIRAGANA"] = [word for name in HAN for word in by_script.pop(name, [])]
    num_own = sum(len(words) for script, words in by_script.items() if script in scripts)
    for script, words in by_script.items():
        if not script:
            continue
        counted = [word for word in words if len(word) > 1] if script in ALPHABETS else words
        if script in ALPHABETS and script not in scripts:  # Isaac Newton and GPU are written alike everywhere
            small = [word for word in counted if not word[0].isupper()]
            if len(small) * 2 > len(counted):
                counted = small
            elif not small and len(counted) <= max(3, num_own):
                counted = []
        if counted:
            joined = ("" if script in HAN else " ").join(words)
            yield joined, len(counted), script in scripts


def _told(piece: str, code: str) -> bool | None:
    """Whether a piece in a script of the language is in it; None when it is too short to tell."""
    script = _script(piece[0]) if piece else ""
    if (
        script in TELLING
        or (script in {"HIRAGANA", "KATAKANA"} and code == "ja")
        or code not in _lingua_languages()
    ):
        return True
    if script == "CJK" and code == "zh":
        return not any(_script(sign) in {"HIRAGANA", "KATAKANA"} for sign in piece)
    words = WORD.findall(piece)
    if len(words) < (MIN_CHARACTERS if script in HAN else MIN_WORDS):
        return None
    values = _detector(COMMON if code in COMMON else (*COMMON, code)).compute_language_confidence_values(
        piece
    )
    found = {str(one.language.iso_code_639_1.name).lower(): one.value for one in values}
    likeliest = max(found, key=lambda name: found[name])
    if likeliest == code or found.get(code, 0.0) >= SURE:
        return True
    return False if found.get(code, 0.0) < UNLIKELY else None


@lru_cache(maxsize=4096)
def _script(sign: str) -> str:
    """The script of a character by its Unicode name; "" for what is no letter."""
    return unicodedata.name(sign, "").replace("-", " ").split(" ")[0] if sign.isalpha() else ""


@lru_cache(maxsize=1)
def _lingua_languages() -> dict[str, Any]:
    import lingua

    return {str(one.iso_code_639_1.name).lower(): one for one in lingua.Language.all()}


@lru_cache(maxsize=32)
def _detector(codes: tuple[str, ...]) -> Any:
    import lingua

    languages = _lingua_languages()
    return lingua.LanguageDetectorBuilder.from_languages(*(languages[code] for code in codes)).build()
