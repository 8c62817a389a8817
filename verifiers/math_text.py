"""LaTeX or plain mathematics as people write it -> one plain spelling that the readers share.

Text commands become quoted words: `5\\text{ cm}` is `5 "cm"`, so that a unit is never a product of letters.
"""

import re

# ruff: noqa: E501, RUF001 - the tables hold look-alike signs on purpose
UNICODE = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
    "∙": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/", "∞": r"\infty ", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ",
    "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "φ": r"\phi ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ",
    "⩾": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ",
    "±": r"\pm ", "ℝ": r"\mathbb{R}", "≈": r"\approx ", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}",
    "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}", "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}",
    "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}", "\u00a0": " ", "\u2009": r"\,", "\u202f": r"\,",
    "’": "'", "′": "'", "“": '"', "”": '"', "µ": "u", "μ": r"\mu ",
}  # fmt: skip
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")
SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "geq": "ge", "leqslant": "le",
    "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">", "bar": "overline", "varnothing": "emptyset",
    "dbinom": "binom", "tbinom": "binom", "lbrace": r"\{", "rbrace": r"\}", "lor": "\\text{ or }",
    "vee": "\\text{ or }", "land": "\\text{ and }", "wedge": "\\text{ and }", "cdot": "*", "times": "*", "div": "/",
    "ast": "*", "lbrack": "[", "rbrack": "]", "degree": r"^\circ ", "mid": "|", "vert": "|", "lvert": "|",
    "rvert": "|", "backslash": r"\setminus ", "operatorname": "mathrm", "percent": r"\%", "colon": ":", "bigcup": "cup",
}  # fmt: skip
DROPPED = re.compile(
    r"left|right|displaystyle|textstyle|limits|[bB]igg?[lr]?|middle|mathstrut|strut|hfill|allowbreak"
    r"|[lL]arge|LARGE|[hH]uge|small|normalsize"
)
TEXT = re.compile(
    r"\\(?:text|mathrm|textbf|textit|textrm|mbox|hbox|mathbf|mathsf|mathtt|texttt|textsf|emph|mathit|boldsymbol"
    r"|bm|textnormal)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
COLOURED = re.compile(
    r"\\(?:bf|rm|it|sf|tt)(?![A-Za-z])|\\(?:text)?color\s*\{[^{}]*\}"
    r"|\\(?:vec|overrightarrow|underline)\s*\{(?P<held>(?:[^{}]|\{[^{}]*\})*)\}"
)
ARRAY = re.compile(r"[(\[]\s*\\begin\{array\}\s*\{[lcr\s]*\}(.*)\\end\{array\}\s*[)\]]", re.DOTALL)
CHOOSE = re.compile(r"\{([^{}]+)\\choose(?![A-Za-z])([^{}]+)\}")
CHOSEN = re.compile(r"(?:\{\s*\})?\s*[_^]\{?(\d+)\}?\s*\\?(?:mathrm\{([CP])\}|([CP]))_\{?(\d+)\}?")  # {}_8C_3
COMMAND = re.compile(r"\\([A-Za-z]+)\s?")
SPACE = r"(?:(?<!\\)\\[,;:! ]|~|\\(?:quad|qquad|thinspace)(?![A-Za-z]))"
GROUPED = re.compile(rf"(?<![\d.])(\d{{1,3}})((?:(?:\{{,\}}|,\\!|{SPACE}|\s)\d{{3}})+)(?![\d/])(?!\s*\\frac)")
FUNCTIONS = [
    "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln",
    "exp", "sqrt", "gcd", "lcm", "max", "min", "det", "lim", "mod", "floor", "ceil", "abs", "pi", "infty",
    "infinity", "inf", "theta", "alpha", "beta",
]  # fmt: skip


def plain(text: str) -> str:
    """The one spelling: no dollar signs or spacing, `\\frac{a}{b}` with braces, quotes around words."""
    for sign, latex in UNICODE.items():
        text = text.replace(sign, latex)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+", lambda m: "^{" + m.group().translate(SUPERSCRIPTS) + "}", text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}", text).replace("√", r"\sqrt")
    text = re.sub(r"^\s*-\s*(\\\$|[€£¥₹])", r"\1-", text).replace(r"\$", "¤")
    text = re.sub(r"\\(?:left|right)\s*\.", " ", re.sub(r"(?<=\d)\{([.:])\}(?=\d)", r"\1", text))
    text = re.sub(r"\\not\s*=", r"\\ne ", text)
    text = CHOOSE.sub(r"\\binom{\1}{\2}", CHOSEN.sub(_chosen, text))
    text = re.sub(r"\\\\\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\]", lambda _: r"\\", text)  # the height of a row
    text = re.sub(r"\$|\\\(|\\\)|\\\[|\\\]", " ", text)
    text = re.sub(r"(?<!\\)\\\\(?=[A-Za-z]{3,})", r"\\", text) if r"\begin" not in text else text
    text = COLOURED.sub(lambda match: match["held"] or " ", text)
    text = COMMAND.sub(_synonym, text)
    text = ARRAY.sub(lambda match: rf"\begin{{pmatrix}}{match[1]}\end{{pmatrix}}", text)
    text = GROUPED.sub(lambda m: m.group(1) + re.sub(r"\D", "", m.group(2)), text)
    text = re.sub(SPACE, " ", text).replace(r"\quad", " ").replace(r"\qquad", " ")
    text = _words(text)
    text = text.replace("**", "^").replace("<=", r"\le ").replace(">=", r"\ge ").replace("!=", r"\ne ")
    text = braced(text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", " ° ", text).replace(r"\%", "%")
    text = re.sub(r"\^\s*(-?\d+)", r"^{\1}", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".,;").strip()


def _chosen(match: re.Match[str]) -> str:
    top, bottom = match[1], match[4]
    if (match[2] or match[3]) == "C":
        return rf"\binom{{{top}}}{{{bottom}}}"
    return rf"\frac{{{top}!}}{{({top}-{bottom})!}}"


def _synonym(match: re.Match[str]) -> str:
    name = match.group(1)
    if DROPPED.fullmatch(name):
        return ""
    if name not in SYNONYMS:
        return match.group()
    other = SYNONYMS[name]
    return f"\\{other} " if other.isalpha() else f" {other} " if other in "<>*/|:" else other


def _words(text: str) -> str:
    """`\\text{ cm}` -> ` "cm" `; connecting words and labels stay bare, for the list reader to see."""
    for _ in range(3):  # \textbf{\text{...}}
        text, changed = TEXT.subn(_word, text)
        if not changed:
            break
    return text


def _word(match: re.Match[str]) -> str:
    inside = match.group(1).replace('"', " ").strip()
    if inside in ("and", "or"):
        return f" {inside} "
    # \mathbf{5} and \text{5} are numbers in another typeface.
    if not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", inside)):
        return f" {inside} "
    counted_minutes = inside == "min" and re.search(r"[\d}]\W*$", match.string[: match.start()])
    if re.fullmatch("|".join(FUNCTIONS), inside) and not counted_minutes:
        return f"\\{inside} "
    # The number of `\\text{72 clips}` is a number, and what follows it a unit.
    if counted := re.fullmatch(r"(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)\s+([A-Za-z][A-Za-z\s]*)", inside):
        return f' {counted[1]} "{counted[2]}" '
    if inside in ("i", "e") and match.group().startswith(r"\mathrm"):
        return f" {inside} "
    # Words before a value name it: \text{five, i.e. } 5
    return f' "{inside}" '


def braced(text: str) -> str:
    """`\\frac12`, `\\frac1{2}` and `\\sqrt2` with the braces TeX thinks of."""
    text = re.sub(r"\\(frac|binom|sqrt|overline)\s+", r"\\\1", text)
    text = re.sub(r"\\(frac|binom)(\d|[A-Za-z])\s*(\d|[A-Za-z])", r"\\\1{\2}{\3}", text)
    text = re.sub(r"\\(frac|binom)(\d|[A-Za-z])\s*\{", r"\\\1{\2}{", text)
    text = re.sub(r"(\\(?:frac|binom)\{[^{}]*\})\s*(\d|[A-Za-z])", r"\1{\2}", text)
    text = re.sub(r"(\\(?:frac|binom)\{[^{}]*\})\s+\{", r"\1{", text)
    return re.sub(r"\\sqrt(\[[^\[\]]*\])?\s*(\d|[A-Za-z])", r"\\sqrt\1{\2}", text)


def split_top(text: str, separator: str) -> list[str]:
    """The parts between separators (a regular expression) that stand outside every bracket and quote."""
    parts, depth, begin = [], 0, 0
    quoted = False
    for match in re.finditer(rf'(?P<cut>{separator})|\\[{{}}]|\\[A-Za-z]+|["()\[\]{{}}]', text):
        token = match.group()
        if token == '"':
            quoted = not quoted
        elif match.group("cut") is not None:
            if depth == 0 and not quoted:
                parts.append(text[begin : match.start()])
                begin = match.end()
        elif token in ("(", "[", "{", r"\{", r"\langle"):
            depth += 1
        elif token in (")", "]", "}", r"\}", r"\rangle"):
            depth -= 1
    parts.append(text[begin:])
    return [part.strip() for part in parts]
