"""The tail of a quantity (`cm`, `"km"/"h"`, `square inches`) -> a Unit that can be compared exactly."""

import re
from dataclasses import dataclass
from fractions import Fraction

from verigrad.verifiers.math_text import FUNCTIONS

F = Fraction
LENGTH = {
    "m": F(1), "meter": F(1), "metre": F(1), "cm": F(1, 100), "centimeter": F(1, 100), "mm": F(1, 1000),
    "centimetre": F(1, 100), "millimeter": F(1, 1000), "km": F(1000), "kilometer": F(1000),
    "kilometre": F(1000),
    "um": F(1, 10**6), "nm": F(1, 10**9), "dm": F(1, 10), "in": F(254, 10000), "inch": F(254, 10000),
    "inche": F(254, 10000), "ft": F(3048, 10000), "foot": F(3048, 10000), "feet": F(3048, 10000),
    "yd": F(9144, 10000), "yard": F(9144, 10000), "mi": F(1609344, 1000), "mile": F(1609344, 1000),
}  # fmt: skip
MASS = {
    "g": F(1), "gram": F(1), "kg": F(1000), "kilogram": F(1000), "mg": F(1, 1000), "milligram": F(1, 1000),
    "ton": F(10**6), "tonne": F(10**6), "lb": F(45359237, 10**5), "pound": F(45359237, 10**5),
    "oz": F(45359237, 16 * 10**5), "ounce": F(45359237, 16 * 10**5),
}  # fmt: skip
TIME = {
    "s": F(1), "sec": F(1), "second": F(1), "ms": F(1, 1000), "min": F(60), "minute": F(60), "h": F(3600),
    "hr": F(3600), "hour": F(3600), "day": F(86400), "week": F(604800),
}  # fmt: skip
VOLUME = {
    "l": F(1, 1000), "liter": F(1, 1000), "litre": F(1, 1000), "ml": F(1, 10**6), "milliliter": F(1, 10**6),
    "cc": F(1, 10**6),
}  # fmt: skip
MONEY = {"$": F(1), "¤": F(1), "dollar": F(1), "usd": F(1), "cent": F(1, 100), "¢": F(1, 100)}
SIGNS = {"€": "euro", "£": "sterling", "¥": "yen", "₹": "rupee"}
ANGLE = {"°": F(1), "degree": F(1), "deg": F(1)}
TABLE: dict[str, tuple[Fraction, dict[str, int]]] = {
    **{name: (factor, {"length": 1}) for name, factor in LENGTH.items()},
    **{name: (factor, {"mass": 1}) for name, factor in MASS.items()},
    **{name: (factor, {"time": 1}) for name, factor in TIME.items()},
    **{name: (factor, {"length": 3}) for name, factor in VOLUME.items()},
    **{name: (factor, {"money": 1}) for name, factor in MONEY.items()},
    **{name: (factor, {"angle": 1}) for name, factor in ANGLE.items()},
    **{name: (F(1), {kind: 1}) for sign, kind in SIGNS.items() for name in (sign, kind)},
    "mph": (F(1609344, 3600000), {"length": 1, "time": -1}),
    "kph": (F(1000, 3600), {"length": 1, "time": -1}),
    "kmh": (F(1000, 3600), {"length": 1, "time": -1}),
    "n": (F(1000), {"mass": 1, "length": 1, "time": -2}),
    "j": (F(1000), {"mass": 1, "length": 2, "time": -2}),
}
ATOM = re.compile(r"(?P<slash>/|\bper\b)|(?P<word>[A-Za-z°¤$¢€£¥₹']+)\.?(?:\s*\^\s*\{?(?P<power>-?\d+)\}?)?")
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
HEDGE_WORDS = "or|and|not|maybe|perhaps|if|wrong|but|else|either"
# `5 minus one` and `negative: 5` are other values than 5, and `5 nope` takes it back.
CHANGE_WORDS = (
    "minus|plus|negative|wait|nope|never|incorrect|versus|vs|otherwise|alternatively|unless|except|nor|neither"
    "|xor|than|least|most"
)
HEDGE = re.compile(rf"\b(?:{HEDGE_WORDS}|{CHANGE_WORDS}|to|is|are)\b", re.IGNORECASE)
MAX_WORDS = 5
EARLIEST_TAIL = 80  # characters from the end in which a unit may begin


@dataclass(frozen=True, slots=True)
class Unit:
    """What one unit is worth, and in which base units."""

    factor: Fraction
    dimensions: tuple[tuple[str, int], ...]


def split_unit(text: str) -> tuple[str, Unit | None]:
    """A plain text's value and its unit; None when it carries no unit."""
    if text[:1] in SIGNS:
        return text[1:].strip(), parse_unit(text[0])
    if text.startswith("¤"):
        money, rate = split_unit(text[1:].strip())  # $18 per day
        whole = rate is None or dict(rate.dimensions).get("money", 0) != 0
        return (text[1:].strip() if whole else money), parse_unit("¤")
    if re.fullmatch(r".*[\d)}]\s*[¤€£¥₹]", text):
        return text[:-1].strip(), parse_unit(text[-1])
    # The unit is the longest tail made of words only; looked for near the end, since it must be short.
    start = max(0, len(text) - EARLIEST_TAIL)
    for at in range(max(start, 1), len(text)):
        if (text[at - 1].isalpha() and text[at].isalpha()) or text[at - 1] == "\\":
            continue
        tail = text[at:].strip()
        if not tail or not (tail[0].isalpha() or tail[0] in '"°') or text[:at].count('"') % 2:
            continue
        if re.fullmatch(r"(?:\"[^\"]*\"|[A-Za-z°./*\s]|\^\s*\{?-?\d+\}?)+", tail) and is_unit(tail):
            head = text[:at].strip()
            glued = not text[at].isspace() and not text[at - 1].isspace() and tail[0] not in '"°'
            if glued and not _only_known(tail):
                continue  # \frac{1}{2}mgh
            if head and (head[-1].isalnum() or head[-1] in ")}]!%"):
                return head, parse_unit(tail)
    return text, None


def is_unit(tail: str) -> bool:
    """Whether these words can only be a unit, and not a product of variables."""
    quoted = " ".join(re.findall(r'"([^"]*)"', tail))
    # `5 \\text{ or maybe 6}` hedges: a unit is a few words without numbers and without doubt.
    counts = re.search(r"\d", re.sub(r"\^\s*\{?-?\d+\}?", "", quoted))
    if counts or len(quoted.split()) > MAX_WORDS or HEDGE.search(tail):
        return False
    if '"' in tail or "°" in tail:
        bare = re.sub(r'"[^"]*"', "", tail)
        return all(word.lower() in TABLE or len(word) > 2 for word in re.findall("[A-Za-z]+", bare))
    words = [word for word in re.findall("[A-Za-z]+", tail) if word != "per"]
    if not words or any(word in FUNCTIONS for word in words):
        return False
    known = all(_known(word) or _looks_like_a_word(word) or word.lower() in POWERS for word in words)
    return known and (any(len(word) >= 2 for word in words) or "/" in tail)


def _only_known(tail: str) -> bool:
    return all(_known(word) for word in re.findall("[A-Za-z]+", tail) if word != "per")


def _looks_like_a_word(word: str) -> bool:
    """`apples`, and not the product `mgh`."""
    return len(word) >= 3 and re.search("[aeiouyAEIOUY]", word) is not None


def parse_unit(text: str) -> Unit:
    """The unit a text names; a word we do not know is a unit of its own kind."""
    factor = Fraction(1)
    dimensions: dict[str, int] = {}
    sign, pending = 1, 1
    for match in ATOM.finditer(text.replace('"', " ").replace("\\", " ")):
        if match["slash"]:
            sign = -1
            continue
        word = match["word"]
        if word.lower() in POWERS:
            pending = POWERS[word.lower()]
            continue
        if word.lower() == "of" or word.lower() == "the":
            continue
        power = sign * int(match["power"][:3] if match["power"] else pending)
        worth, kinds = _known(word) or (Fraction(1), {word.lower().rstrip("s."): 1})
        factor *= worth**power
        for kind, exponent in kinds.items():
            dimensions[kind] = dimensions.get(kind, 0) + exponent * power
        pending = 1
    return Unit(factor, tuple(sorted((kind, power) for kind, power in dimensions.items() if power)))


def _known(word: str) -> tuple[Fraction, dict[str, int]] | None:
    for name in (word, word.lower(), word.lower().rstrip("s")):
        if name in TABLE:
            return TABLE[name]
    return None
