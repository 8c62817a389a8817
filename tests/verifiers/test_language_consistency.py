"""What language_consistency pays: texts in one language, in two, and in none, graded by hand."""

# ruff: noqa: E501, RUF001 - a table is read by columns; other scripts' signs are on purpose

import subprocess
import sys
import time

import pytest

from verigrad.verifiers import registry
from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.language_detection import known_language, language_of, language_share

EN = "First we add the two numbers and then we divide the result by three."
DE = "Zuerst addieren wir die beiden Zahlen und dann teilen wir das Ergebnis durch drei."
FR = "Nous ajoutons d'abord les deux nombres, puis nous divisons le résultat par trois."
ES = "Primero sumamos los dos números y luego dividimos el resultado entre tres."
ZH = "首先我们把两个数字相加，然后把结果除以三。"
JA = "まず二つの数を足して、それから結果を三で割ります。"
RU = "Сначала мы складываем два числа, а затем делим результат на три."
AR = "أولا نجمع العددين ثم نقسم النتيجة على ثلاثة"
KO = "먼저 두 수를 더한 다음 결과를 삼으로 나눕니다."


def judge(text, prompt="?", options=None, **meta):
    problem = Problem("p", prompt, None, meta)
    return registry.load("language_consistency", options or {}).judge(problem, [Attempt(text)])[0]


# (wanted language, text, lowest and highest share that a reader would give; None: cannot be told)
CASES = [
    ("en", EN, 1, 1), ("de", DE, 1, 1), ("fr", FR, 1, 1), ("es", ES, 1, 1), ("zh", ZH, 1, 1), ("ja", JA, 1, 1),
    ("ru", RU, 1, 1), ("ar", AR, 1, 1), ("ko", KO, 1, 1), ("zh-CN", ZH, 1, 1),
    ("en", DE, 0, 0), ("de", EN, 0, 0), ("en", ZH, 0, 0), ("zh", EN, 0, 0), ("en", RU, 0, 0), ("zh", JA, 0, 0),
    ("ja", ZH, 0, 0), ("es", FR, 0, 0), ("ko", JA, 0, 0), ("ar", EN, 0, 0),
    ("en", f"{EN} {DE}", 0.4, 0.6), ("de", f"{EN}\n{DE}\n", 0.4, 0.6), ("en", f"{EN} {ZH}", 0.3, 0.6), ("zh", f"{ZH}{ZH}{EN}", 0.6, 0.9),
    ("en", "So we need to 计算 the sum of all the numbers", 0.7, 0.9),  # two characters of eleven words
    ("zh", "我们使用 Python 和 GPU 来计算结果，就像 Isaac Newton 那样。", 1, 1),  # names are written alike
    ("zh", "我们 basically just compute the whole thing 得到结果", 0.4, 0.65),
    ("en", r"We get $\frac{\text{Gesamtzahl}}{2} = \alpha$ and therefore $x_1 = 5$.", 1, 1),  # formulas do not count
    ("de", "Das Programm sieht dann so aus:\n```python\nfor number in the_numbers: print(number, 'is the next one')\n```\nEs gibt alle Zahlen aus.", 1, 1),
    ("de", r"Damit ist die Behauptung bewiesen, also \boxed{42}.", 1, 1),
    ("en", "See https://de.wikipedia.org/wiki/Die_Zahl for what we know about this number.", 1, 1),
    ("en", "5", None, None), ("en", "", None, None), ("de", "x = 5", None, None), ("en", r"\boxed{\frac{1}{2}}", None, None),
    ("de", "Paris", None, None), ("en", "😀😀😀", None, None), ("en", "```\n" + DE + "\n```", None, None),
    ("en", "The answer is 5", 1, 1), ("zh", "答案是五", 1, 1), ("en", "答案是五", 0, 0), ("de", "答", 0, 0),
    ("en", "Wir\naddieren\nbeide\nZahlen\nund\nteilen\ndann\ndas\nErgebnis", 0, 0),  # one word a line hides nothing
    ("en", DE.title(), 0, 0), ("en", DE.upper(), 0, 0),  # capitals make no names
    ("en", f"${DE}$", 0, 0), ("en", rf"\({DE}\) and $x$", 0, 0), ("en", rf"\boxed{{{ZH}}}", 0, 0), ("en", f"`{DE}`", 0, 0),  # hidden in signs
    ("en", "It costs $5 for one of them and then $7 for another one, so it is more.", 1, 1), ("en", r"So \text{the number of ways} is even.", 1, 1),
    ("kn", "ಇದು ಒಂದು ಸರಳ ವಾಕ್ಯ", 1, 1), ("kn", EN, 0, 0), ("th", "นี่คือประโยคภาษาไทย", 1, 1), ("hi", "यह हिंदी में एक सरल वाक्य है", 1, 1),
    ("el", "Αυτή είναι μια απλή πρόταση", 1, 1), ("en", "Let α and β be the two roots of the equation", 1, 1),
]  # fmt: skip


@pytest.mark.parametrize(("language", "text", "low", "high"), CASES)
def test_the_share_is_what_a_reader_would_say(language, text, low, high):
    share = language_share(text, language)
    if low is None:
        assert share is None
    else:
        assert share is not None
        assert low <= share <= high


def test_the_table_is_as_long_as_promised():
    assert len(CASES) >= 25


def test_share_pays_the_share_and_gate_pays_from_a_threshold():
    verdict = judge(f"{EN} {DE}", language="en")
    assert verdict.outcome == "partial"
    assert verdict.reward == verdict.parts["share"]
    assert 0.4 < verdict.reward < 0.6
    assert verdict.reason.endswith("% en")
    assert judge(EN, language="en").outcome == "right"
    assert judge(DE, language="en").outcome == "wrong"
    assert judge(f"{EN} {DE}", language="en", options={"mode": "gate"}).reward == 0.0
    assert judge(f"{EN} {DE}", language="en", options={"mode": "gate", "threshold": 0.3}).reward == 1.0
    assert judge(EN, language="en", options={"mode": "gate"}).reward == 1.0


def test_the_prompts_own_language_is_wanted_by_default():
    assert judge(DE, prompt=DE).reward == 1.0
    assert judge(EN, prompt=DE).reward == 0.0
    assert (
        judge(ZH, prompt=[{"role": "system", "content": EN}, {"role": "user", "content": ZH}]).reward == 1.0
    )
    verdict = judge(EN, prompt="$2x=8$, $x=?$")
    assert (verdict.reward, verdict.reason) == (1.0, "the prompt's language cannot be told")


def test_thinking_counts_unless_told_otherwise():
    text = f"<think>{DE}</think>{EN}"
    assert 0.4 < judge(text, language="en").reward < 0.6
    assert judge(text, language="en", options={"of": "final_text"}).reward == 1.0


def test_short_text_is_not_punished_and_says_so():
    verdict = judge(r"\boxed{5}", language="en")
    assert (verdict.reward, verdict.outcome, verdict.reason) == (1.0, "right", "too little text to tell en")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "klingon"}, "ISO 639-1"),
        ({"language": 5}, "ISO 639-1"),
        ({"mode": "part"}, "one of share, gate"),
        ({"mode": "gate", "threshold": 2}, "from 0 to 1"),
        ({"threshold": 0.5}, "no effect with mode = 'share'"),
        ({"of": "thinking"}, "one of response, final_text"),
        ({"langauge": "en"}, "did you mean 'language'"),
    ],
)
def test_bad_options_are_refused_when_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        registry.load("language_consistency", options)


def test_a_broken_row_is_named():
    with pytest.raises(ValueError, match="language = 'xx'"):
        judge(EN, language="xx")


def test_languages_are_known_by_their_codes():
    assert all(known_language(code) for code in ("en", "EN", "zh-cn", "pt_BR", "kn", "sw", "ne"))
    assert not any(known_language(code) for code in ("", "xx", "english", None, 3, ["en"]))
    assert language_of(DE) == "de"
    assert language_of(KO) == "ko"
    assert language_of("2 + 2") is None


def test_fifty_thousand_characters_take_little_time():
    language_share(EN, "en")
    for text in (
        EN * 700,
        ZH * 2000,
        "a. " * 16_000,
        "$" * 50_000,
        "\\" * 50_000,
        "`" * 49_999,
        "<" * 50_000,
        "@" * 50_000,
        "\\begin{a}" * 5000,
        "\\(" * 25_000,
        "$$ " * 16_000,
        "\\a{" * 15_000,
        "x" * 50_000,
        "a_" * 25_000,
        "中a" * 25_000,
    ):
        started = time.perf_counter()
        share = language_share(text[:50_000], "en")
        assert share is None or 0 <= share <= 1
        assert time.perf_counter() - started < 8, text[:20]


def test_torch_is_not_imported():
    code = "import sys; from verigrad.verifiers import language_consistency as l; l.warm_up(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
