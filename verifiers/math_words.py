"""Words inside plain mathematics: an answer, a label, a factor, or a condition that adds nothing."""

import math
import re
from fractions import Fraction

from verigrad.verifiers.math_text import FUNCTIONS
from verigrad.verifiers.math_units import CHANGE_WORDS, HEDGE_WORDS

PROSE = re.compile(rf'"|(?<![\\A-Za-z])(?!(?:{"|".join(FUNCTIONS)})\b)[A-Za-z]{{4,}}')
HEDGE = re.compile(rf"\b(?:{HEDGE_WORDS})\b", re.IGNORECASE)
CHANGE = re.compile(rf"\b(?:{CHANGE_WORDS})\b", re.IGNORECASE)
SIGNED_WORD = re.compile(r"\d+\.\d+|[^\W_]+|[+<>^]|-(?=[\s\"{(]*(?:\d|\\|[a-z]\b))")
SCALES: dict[str, int | Fraction] = {
    "dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "tenth": Fraction(1, 10), "hundredth": Fraction(1, 100), "thousandth": Fraction(1, 1000),
    "millionth": Fraction(1, 10**6),
}  # fmt: skip
COUNT_WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
COUNTS = {word: number for number, word in enumerate(COUNT_WORDS)}
SCALED = re.compile(
    rf'(?P<count>[-¤€£\d.]*\d(?:/\d+)?|\\frac\{{\d+\}}\{{\d+\}})\s*"?\s*(?P<scale>(?:{"|".join(SCALES)})s?(?:\s+(?:{"|".join(SCALES)})s?)*)\b'
    r'\s*(?P<rest>[A-Za-z\s]*"?)$',
    re.IGNORECASE,
)
ECHO = re.compile(r"(?P<first>\w+)\s*(?:[,.;:!]|\b(?=for\b|since\b|because\b))(?P<rest>.*)", re.DOTALL)
PERCENT = re.compile(r'(?<=[\d}])\s*"?\s*(?:percent|per cent)(?: points?)?\s*"?$', re.IGNORECASE)
NUMBERS = r"(?:\\mathbb\s*\{[RZ]\}|\\mathbb [RZ])"
EVERY = r"(?:\s|\"|\\in\b|(?<![A-Za-z\\])(?:real|integers?|numbers?|values?|of|in|[a-z])(?![A-Za-z]))*+"
QUANTIFIER = re.compile(
    rf'(?:(?<![,;(\s"])[,;(\s"]*+\bfor (?:all|any|every|each)\b{EVERY}{NUMBERS}?\s*\)?'  # for all real x
    rf'|,\s*(?:"(?:where|with|for)"\s*)?[a-z]\s*\\in\s*{NUMBERS}'  # , k \in \mathbb{{Z}}
    r'|,?\s*"(?:where|with)"\s*[jkmn]\s*(?:>|\\ge)\s*\d+'  # where n \ge 1
    r'|,?\s*"(?:where|with|for)?\s*[a-z]?"?\s*[a-z]?\s*"?\s*is an(?:y)? integer")\s*$'
)
CLOSING_WORDS = re.compile(
    r'(?<=[\d}])\s*"(?:is|are)\s+(?:the\s+|all\s+|our\s+|only\s+|final\s+|desired\s+|required\s+)*'
    r'(?:primes?|solutions?|answers?|roots?|values?|numbers?|integers?|zeros?|factors?)"$'
)
LABEL = re.compile(
    r'"\s*(?P<words>[A-Za-z][A-Za-z\s]*?)\s*(?P<end>[:=]?)\s*"\s*(?P<rest>(?:[(\[]|\\\{|\\begin).*)',
    re.DOTALL,
)
NAMED_THINGS = re.compile(
    r"\b(?:points?|range|interval|domain|vertex|cent(?:er|re)|coordinates|set|solutions?|answers?|vector|matrix)$",
    re.IGNORECASE,
)


def without_remarks(text: str) -> str:
    """Without words that leave the value as it is: a quantifier, a label, `are the primes`."""
    text = CLOSING_WORDS.sub("", QUANTIFIER.sub("", text)).strip() or text
    label = LABEL.fullmatch(text)
    if label is None or HEDGE.search(label["words"]) or CHANGE.search(label["words"]):
        return text
    return label["rest"] if label["end"] or NAMED_THINGS.search(label["words"]) else text


def scaled(text: str) -> str:
    """`5 "dozen"` as `5*12`, `2 "percent"` as `2%`: these words are factors, and no units."""
    text = PERCENT.sub("%", text)
    match = SCALED.fullmatch(text)
    if match is None:
        return text
    rest = match["rest"].replace('"', "").strip()
    if rest.startswith("of "):
        rest = rest[3:]
    factor = math.prod(SCALES[word.rstrip("s")] for word in match["scale"].lower().split())
    return f"{match['count']}*({factor})" + (f' "{rest}"' if rest else "")


def agrees(gold: str, found: str) -> bool:
    """Whether `yes, it is` answers `yes`: the word comes first, and nothing after it takes it back."""
    told = words(gold)
    if told not in ("yes", "no", "true", "false"):
        return False
    match = ECHO.fullmatch(found.replace('"', "").strip())
    if match is None or words(match["first"]) != told:
        return False
    rest = words(match["rest"]).split()
    doubts = {"yes", "no", "not", "true", "false", "t", "cannot"}
    if told == "no":  # no, they do not
        doubts, rest = {"yes", "no", "true", "false"}, [word for word in rest if word != "not"]
    after = " ".join(rest)
    return not doubts & set(rest) and not HEDGE.search(after) and not CHANGE.search(after)


def is_words(text: str) -> bool:
    """Whether the text is words and no product of letters: `east`, `"no solution"`, but not `x` or `xy`."""
    bare = text.replace('"', "").strip()
    if not re.fullmatch(r"[A-Za-z][A-Za-z\s'.,!?-]*", bare) or bare in FUNCTIONS:
        return False
    # "p - q" is a difference, "a well-known fact" is not: words have two letters somewhere.
    return re.search("[A-Za-z]{2}", bare) is not None and not re.fullmatch(
        r"[xyz]{2,3}|[abc]{2}|[a-z]-[a-z]", bare
    )


def words(text: str, *, signs: bool = False) -> str:
    """Words as they are compared: their letters in order, whatever the case and the typeface.

    With `signs`, those of a formula among the words count too: `-1 if n is odd` is not `1 if n is odd`.
    """
    if signs:
        typeface = r"\\(?!(?:le|ge|ne|pm|sqrt)\b)[A-Za-z]+"
        return " ".join(SIGNED_WORD.findall(re.sub(typeface, " ", text.casefold())))
    return " ".join(re.findall(r"[^\W_]+", re.sub(r"\\[A-Za-z]+", " ", text).casefold()))
