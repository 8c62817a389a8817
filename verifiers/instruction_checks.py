"""One text and one constraint's parameters -> whether it holds; the table of all kinds of constraints.

After IFEval (arXiv 2311.07911); where we differ stands in docs/verifiers/instruction_following.md.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from verigrad.verifiers.language_detection import is_in, known_language
from verigrad.verifiers.options import Rule, one_of, whole

Check = Callable[[str, Mapping[str, Any]], bool]
RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": lambda count, n: count >= n,
    "at most": lambda count, n: count <= n,
    "exactly": lambda count, n: count == n,
    "less than": lambda count, n: count < n,
    "more than": lambda count, n: count > n,
}
MAX_COUNT = 1_000_000
WORD = re.compile(r"\w+")
JOINED_WORD = re.compile(r"\w+(?:['’-]\w+)*")  # noqa: RUF001 - a printed apostrophe
CLOSING = "\"'”’)]*_\n "  # noqa: RUF001 - printed quotes
BULLET = re.compile(r"^[ \t]*(?:\*(?!\*)|-(?![-\d])|•)[ \t]*[^\s*-].*$", re.MULTILINE)
HIGHLIGHT = re.compile(r"\*\*(?=[^\s*])[^\n*]+\*\*|\*(?=[^\s*])[^\n*]+\*")
PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
TITLE = re.compile(r"<<[^<>\n]*[^<>\s][^<>\n]*>>")
FENCED = re.compile(r"\A```(?:json)?[ \t]*\n?(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)
QUOTES = {'"': '"', "“": "”", "«": "»", "„": "“", "「": "」"}
# A full stop after these ends no sentence.
ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|sr|jr|st|vs|etc|inc|ltd|co|no|fig|approx|dept|est)|\b[a-z](?:\.[a-z])*)\.$",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|$)|[。！？]+|\n\s*\n")  # noqa: RUF001 - full-width signs


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of constraint: its check, what it needs, and what it may have with its default."""

    check: Check
    needs: Mapping[str, Rule] = field(default_factory=dict)
    takes: Mapping[str, tuple[Rule, Any]] = field(default_factory=dict)


def counts(count: Callable[[str], int], relation: str) -> Kind:
    """A kind that compares a count of the text with `n`, by this relation unless told."""
    return Kind(
        lambda text, given: RELATIONS[given["relation"]](count(text), given["n"]),
        {"n": whole(0, MAX_COUNT)},
        {"relation": (one_of(*RELATIONS), relation)},
    )


def counts_of(count: Callable[[str, Mapping[str, Any]], int], relation: str, **needs: Rule) -> Kind:
    """The same for a count that depends on the parameters."""
    return Kind(
        lambda text, given: RELATIONS[given["relation"]](count(text, given), given["n"]),
        {"n": whole(0, MAX_COUNT), **needs},
        {"relation": (one_of(*RELATIONS), relation)},
    )


def phrase(value: Any) -> str:
    """A text that is not blank."""
    return (
        "" if isinstance(value, str) and value.strip() and len(value) <= 5000 else "a text that is not blank"
    )


def phrases(value: Any) -> str:
    """A list of such texts."""
    fine = isinstance(value, list | tuple) and 0 < len(value) <= 200 and not any(phrase(one) for one in value)
    return "" if fine else "a list of texts that are not blank"


def letter(value: Any) -> str:
    """One character."""
    return "" if isinstance(value, str) and len(value.strip()) == 1 else "one letter or sign"


def language(value: Any) -> str:
    """An ISO 639-1 code that the detector knows."""
    return "" if known_language(value) else "an ISO 639-1 code of a known language, such as 'en'"


def num_sentences(text: str) -> int:
    """Sentences by their closing signs, abbreviations and initials aside; a blank line ends one as well."""
    count, begin = 0, 0
    for match in SENTENCE_END.finditer(text):
        before = text[max(begin, match.start() - 30) : match.end()].rstrip(CLOSING)
        if match.group().startswith(".") and ABBREVIATION.search(before) and text[match.end() :].strip():
            continue
        count += bool(WORD.search(text, begin, match.end()))
        begin = match.end()
    return count + bool(WORD.search(text, begin))


def paragraphs(text: str, separator: str) -> list[str]:
    """Paragraphs between blank lines, or between `***`; blank ones at both ends are none."""
    parts = [part.strip() for part in re.split(r"\*{3}" if separator == "***" else r"\n\s*\n", text)]
    while parts and not parts[0]:
        parts.pop(0)
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _paragraphs(text: str, given: Mapping[str, Any]) -> int:
    parts = paragraphs(text, given["separator"])
    return len(parts) if all(parts) else -1  # an empty paragraph in the middle is a broken count


def _first_word(text: str, given: Mapping[str, Any]) -> bool:
    parts = paragraphs(text, given["separator"])
    if given["n"] is not None and len(parts) != given["n"]:
        return False
    if len(parts) < given["paragraph"]:
        return False
    first = WORD.search(parts[given["paragraph"] - 1])
    return first is not None and first.group().casefold() == given["word"].strip().casefold()


def _keywords(text: str, given: Mapping[str, Any]) -> bool:
    return all(word.strip().casefold() in text.casefold() for word in given["words"])


def whole_words(text: str, word: str) -> int:
    """How often a word or phrase stands in the text by itself, whatever its case."""
    return len(re.findall(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE))


def _letters(text: str, given: Mapping[str, Any]) -> int:
    return text.casefold().count(given["letter"].strip().casefold())


def _capital_words(text: str) -> int:
    return sum(word.isupper() for word in JOINED_WORD.findall(text))


def _sections(text: str, given: Mapping[str, Any]) -> int:
    marker = re.escape(given["marker"].strip())
    return len(re.findall(rf"^[ \t#*_]*{marker}\s?\d+", text, re.MULTILINE | re.IGNORECASE))


def _case(text: str, given: Mapping[str, Any], upper: bool) -> bool:
    cased = text.isupper() if upper else text.islower()
    return cased and (given["language"] is None or is_in(text.lower(), given["language"]))


def _json(text: str, given: Mapping[str, Any]) -> bool:
    stripped = text.strip()
    fenced = FENCED.match(stripped)
    try:
        value = json.loads(fenced[1] if fenced else stripped)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)


def _postscript(text: str, given: Mapping[str, Any]) -> bool:
    letters = re.findall(r"\w", given["marker"])
    spelled = r"\.?\s?".join(map(re.escape, letters))
    return re.search(rf"(?:^|\n|(?<=[\s*_])){spelled}[.:]*\s*[*_]*\s*\w", text, re.IGNORECASE) is not None


def _two_responses(text: str, given: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in re.split(r"\*{6}", text)]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _starts(text: str, given: Mapping[str, Any]) -> bool:
    return _folded(text).startswith(_folded(given["phrase"]))


def _ends(text: str, given: Mapping[str, Any]) -> bool:
    return _folded(text).rstrip("\"”' ").endswith(_folded(given["phrase"]).rstrip("\"”' "))


def _repeats(text: str, given: Mapping[str, Any]) -> bool:
    said, wanted = _folded(text), _folded(given["prompt"])
    return said.startswith(wanted) and len(said) > len(wanted)


def _folded(text: str) -> str:
    """One spelling of case and blanks."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _quoted(text: str, given: Mapping[str, Any]) -> bool:
    stripped = text.strip()
    return len(stripped) > 2 and QUOTES.get(stripped[0]) == stripped[-1]


SEPARATOR: dict[str, tuple[Rule, Any]] = {"separator": (one_of("blank line", "***"), "blank line")}
OPTIONAL_LANGUAGE: dict[str, tuple[Rule, Any]] = {"language": (language, None)}
RELATED: dict[str, tuple[Rule, Any]] = {"relation": (one_of(*RELATIONS), "exactly")}
KINDS: dict[str, Kind] = {
    "words": counts(lambda text: len(WORD.findall(text)), "at least"),
    "characters": counts(lambda text: len(text.strip()), "at most"),
    "lines": counts(lambda text: sum(bool(line.strip()) for line in text.splitlines()), "exactly"),
    "sentences": counts(num_sentences, "at least"),
    "paragraphs": Kind(
        lambda text, given: (
            RELATIONS[given["relation"]](_paragraphs(text, given), given["n"])
            and _paragraphs(text, given) >= 0
        ),
        {"n": whole(0, MAX_COUNT)},
        {**SEPARATOR, **RELATED},
    ),
    "paragraph_first_word": Kind(
        _first_word,
        {"paragraph": whole(1, MAX_COUNT), "word": phrase},
        {**SEPARATOR, "n": (whole(1, MAX_COUNT), None)},
    ),
    "keywords": Kind(_keywords, {"words": phrases}),
    "forbidden_words": Kind(
        lambda text, given: not any(whole_words(text, word) for word in given["words"]), {"words": phrases}
    ),
    "keyword_frequency": counts_of(
        lambda text, given: whole_words(text, given["word"]), "at least", word=phrase
    ),
    "letter_frequency": counts_of(_letters, "at least", letter=letter),
    "capital_words": counts(_capital_words, "at least"),
    "lowercase": Kind(lambda text, given: _case(text, given, upper=False), {}, OPTIONAL_LANGUAGE),
    "uppercase": Kind(lambda text, given: _case(text, given, upper=True), {}, OPTIONAL_LANGUAGE),
    "no_commas": Kind(lambda text, given: not re.search("[,،，、]", text)),  # noqa: RUF001 - other scripts' commas
    "start_phrase": Kind(_starts, {"phrase": phrase}),
    "end_phrase": Kind(_ends, {"phrase": phrase}),
    "quoted": Kind(_quoted),
    "bullets": counts(lambda text: len(BULLET.findall(text)), "exactly"),
    "sections": counts_of(_sections, "at least", marker=phrase),
    "highlights": counts(lambda text: len(HIGHLIGHT.findall(text)), "at least"),
    "placeholders": counts(lambda text: len(PLACEHOLDER.findall(text)), "at least"),
    "title": Kind(lambda text, given: TITLE.search(text) is not None),
    "json": Kind(_json),
    "postscript": Kind(_postscript, {}, {"marker": (phrase, "P.S.")}),
    "choice": Kind(
        lambda text, given: any(_folded(one) in _folded(text) for one in given["options"]),
        {"options": phrases},
    ),
    "two_responses": Kind(_two_responses),
    "repeat_prompt": Kind(_repeats, {}, {"prompt": (phrase, None)}),
    "language": Kind(lambda text, given: is_in(text, given["language"]), {"language": language}),
}
