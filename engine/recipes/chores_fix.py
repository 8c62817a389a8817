"""A seeded random generator -> one failing program to mend, judged by inputs that the agent never sees."""

import random
from collections.abc import Sequence

from verigrad.engine.recipes.chore import Chore, hard_coded, runs

NAMES = ("ada", "ben", "cleo", "dan", "eve", "finn", "gus", "hana", "ida", "joel", "kim", "lena")
WORDS = ("apple", "river", "stone", "cloud", "lamp", "paper", "chair", "green", "table", "house", "train")


def mend(
    what: str,
    *,
    file: str,
    broken: str,
    mended: str,
    cases: Sequence[tuple[str, str]],
    shown: int = 1,
    **others: str,
) -> Chore:
    """A program to mend: the first `shown` cases (standard input, output) are told, all are tried."""
    language = "sh" if file.endswith(".sh") else "python3"
    examples = "\n".join(f"  input {stdin!r} should give {out!r}" for stdin, out in cases[:shown])
    test = f"#!/bin/sh\n# {cases[0][0]!r} -> {cases[0][1]!r}\n"
    return Chore(
        f"{what}\nThe program is {file}; it reads standard input and writes standard output. It has a "
        f"fault: mend it, keeping its name.\n{examples}",
        files={file: broken, "example.sh": test, **others},
        check=runs([language, file], cases),
        oracle={"files": {file: mended}},
        cheats=[
            {"files": {file: hard_coded(language, cases[:shown])}},  # knows only what it was shown
            {"files": {"example.sh": "exit 0\n", "conftest.py": "import os; os._exit(0)\n"}},
            {"files": {file: "exit 0\n" if language == "sh" else "raise SystemExit(0)\n"}},
        ],
    )


def sum_to_n(rng: random.Random) -> Chore:
    """The last number is left out."""
    name = rng.choice(("total", "add_up", "summing"))
    text = f"def {name}(n):\n    return sum(range(1, n))\n\n\nprint({name}(int(input())))\n"
    cases = [(f"{n}\n", f"{n * (n + 1) // 2}\n") for n in rng.sample(range(3, 400), 4)]
    return mend(
        "A program should add the whole numbers from 1 to n, n included.",
        file=f"{name}.py", broken=text, mended=text.replace("(1, n)", "(1, n + 1)"), cases=cases,
    )  # fmt: skip


def mean_of_numbers(rng: random.Random) -> Chore:
    """Whole division, and no numbers at all."""
    file = rng.choice(("mean.py", "average.py"))
    broken = (
        "import sys\n\nnumbers = [int(word) for word in sys.stdin.read().split()]\n"
        "print(f'{sum(numbers) // len(numbers):.2f}')\n"
    )
    mended = broken.replace("sum(numbers) // len(numbers)", "sum(numbers) / max(1, len(numbers))")
    lists = [[rng.randint(1, 99) for _ in range(rng.randint(2, 6))] for _ in range(4)]
    lists[0][0] += (sum(lists[0]) % len(lists[0])) == 0
    cases = [(" ".join(map(str, one)) + "\n", f"{sum(one) / len(one):.2f}\n") for one in lists]
    return mend(
        "A program should print the mean of the numbers it reads, with two decimals, and 0.00 for none.",
        file=file, broken=broken, mended=mended, cases=[*cases, ("", "0.00\n")],
    )  # fmt: skip


def count_a_word(rng: random.Random) -> Chore:
    """Case and punctuation."""
    word = rng.choice(WORDS)
    broken = f"import sys\n\nprint(sys.stdin.read().split().count({word!r}))\n"
    mended = (
        f"import re\nimport sys\n\nprint(re.findall('[a-z]+', sys.stdin.read().lower()).count({word!r}))\n"
    )
    cases = []
    for _ in range(4):
        num = rng.randint(1, 6)
        spelled = [rng.choice((word, word.title(), word.upper() + ",", f"{word}.")) for _ in range(num)]
        text = [*spelled, word.title() + "!", *rng.choices([w for w in WORDS if w != word], k=5), word + "s"]
        rng.shuffle(text)
        cases.append((" ".join(text) + "\n", f"{num + 1}\n"))
    return mend(
        f"A program should count how often the word {word!r} occurs, in upper or lower case, with or without "
        f"punctuation after it; {word + 's'!r} is another word.",
        file="count.py", broken=broken, mended=mended, cases=cases,
    )  # fmt: skip


def sort_by_length(rng: random.Random) -> Chore:
    """A bubble sort that stops one pass too soon, and ties."""
    broken = (
        "words = input().split()\nfor i in range(len(words) - 2):\n    for j in range(len(words) - 2 - i):\n"
        "        if len(words[j]) > len(words[j + 1]):\n"
        "            words[j], words[j + 1] = words[j + 1], words[j]\nprint(*words)\n"
    )
    cases = []
    for _ in range(4):
        words = rng.sample(WORDS + NAMES, rng.randint(5, 9))
        words.append("ox")  # the shortest stands last
        cases.append((" ".join(words) + "\n", " ".join(sorted(words, key=lambda w: (len(w), w))) + "\n"))
    mended = "print(*sorted(input().split(), key=lambda word: (len(word), word)))\n"
    return mend(
        "A program should sort words by their length, and words of equal length by the alphabet.",
        file=rng.choice(("order.py", "by_length.py")), broken=broken, mended=mended, cases=cases,
    )  # fmt: skip


def leap_years(rng: random.Random) -> Chore:
    """Centuries."""
    years = [rng.choice((1700, 1800, 1900, 2100)), rng.choice((1600, 2000, 2400)),
             4 * rng.randrange(430, 500) + 1, 4 * rng.choice((431, 449, 462, 487, 503))]  # fmt: skip

    def leap(year: int) -> bool:
        return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)

    broken = "year = int(input())\nprint('leap' if year % 4 == 0 else 'common')\n"
    mended = broken.replace("year % 4 == 0", "year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)")
    return mend(
        "A program should say 'leap' or 'common' of a year of the Gregorian calendar.",
        file=f"leap{rng.randint(1, 99)}.py", broken=broken, mended=mended,
        cases=[(f"{year}\n", "leap\n" if leap(year) else "common\n") for year in years],
    )  # fmt: skip


def roman(number: int) -> str:
    """A whole number below 4000 in Roman numerals."""
    signs = ((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"),
             (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))  # fmt: skip
    text = ""
    for value, sign in signs:
        text, number = text + sign * (number // value), number % value
    return text


def roman_numerals(rng: random.Random) -> Chore:
    """IX is read as eleven."""
    broken = (
        "VALUES = {'I': 1, 'V': 5, 'X': 10, 'L': 50, 'C': 100, 'D': 500, 'M': 1000}\n"
        "print(sum(VALUES[sign] for sign in input().strip()))\n"
    )
    mended = broken.splitlines()[0] + (
        "\nv = [VALUES[sign] for sign in input().strip()] + [0]\n"
        "print(sum(a if a >= b else -a for a, b in zip(v, v[1:])))\n"
    )
    numbers = [rng.choice((4, 9, 40, 90, 400, 900)) + rng.choice((0, 1000, 2000))]
    numbers += rng.sample(range(1, 3999), 4)
    return mend(
        "A program should turn a Roman numeral into a number.",
        file=f"roman{rng.randint(1, 99)}.py", broken=broken, mended=mended,
        cases=[(roman(number) + "\n", f"{number}\n") for number in numbers],
    )  # fmt: skip


def little_calculator(rng: random.Random) -> Chore:
    """A program that does not even start, and a wrong sign behind that."""
    broken = (
        "a, sign, b = input().split()\na, b = int(a), int(b)\nif sign == '+'\n    print(a + b)\n"
        "elif sign == '-':\n    print(b - a)\nelif sign == '*':\n    print(a * b)\n"
    )
    mended = broken.replace("'+'\n", "'+':\n").replace("b - a", "a - b")
    cases = []
    for sign in [*rng.sample("+-*", 3), "-"]:
        a, b = rng.randint(2, 90), rng.randint(100, 190)
        cases.append((f"{a} {sign} {b}\n", f"{ {'+': a + b, '-': a - b, '*': a * b}[sign] }\n"))
    return mend(
        "A program should work out lines such as '12 - 5', with one of + - * between two whole numbers.",
        file=rng.choice(("calc.py", "sums.py")), broken=broken, mended=mended, cases=cases,
    )  # fmt: skip


def too_slow(rng: random.Random) -> Chore:
    """Right, and takes for ever."""
    a, b = rng.randint(1, 5), rng.randint(1, 5)

    def term(n: int) -> int:
        x, y = a, b
        for _ in range(n):
            x, y = y, x + y
        return x

    broken = (
        f"def term(n):\n    return ({a}, {b})[n] if n < 2 else term(n - 1) + term(n - 2)\n\n\n"
        "print(term(int(input())))\n"
    )
    mended = f"x, y = {a}, {b}\nfor _ in range(int(input())):\n    x, y = y, x + y\nprint(x)\n"
    cases = [(f"{n}\n", f"{term(n)}\n") for n in (rng.randint(6, 12), *rng.sample(range(70, 300), 3))]
    return mend(
        f"A program should print term n of the sequence that starts {a}, {b} and goes on with the sum of the "
        "two terms before. It is right for small n, and must take less than a second for n up to 300, too.",
        file="sequence.py", broken=broken, mended=mended, cases=cases,
    )  # fmt: skip


def lines_of_files(rng: random.Random) -> Chore:
    """A shell script that trips over names with blanks."""
    file = rng.choice(("count_lines.sh", "lines.sh"))
    broken = (
        "total=0\nwhile read -r line; do\n    for word in $line; do total=$((total + 1)); done\ndone\n"
        "echo $total\n"
    )
    cases = []
    for num in rng.sample(range(2, 9), 4):
        lines = [" ".join(rng.sample(WORDS, rng.randint(1, 4))) for _ in range(num)]
        lines[0] = "two words"
        cases.append(("\n".join(lines) + "\n", f"{len(lines)}\n"))
    return mend(
        "A shell script should count the lines it reads; it counts the words instead.",
        file=file, broken=broken, mended="grep -c ''\n", cases=cases,
    )  # fmt: skip


def quoted_commas(rng: random.Random) -> Chore:
    """Splitting CSV at every comma."""
    broken = (
        "import sys\n\ntotal = 0\nfor line in sys.stdin.read().splitlines()[1:]:\n"
        "    total += int(line.split(',')[1])\nprint(total)\n"
    )
    mended = "import csv\nimport sys\n\nprint(sum(int(row['amount']) for row in csv.DictReader(sys.stdin)))\n"
    cases = []
    for _ in range(3):
        rows = [(rng.choice(NAMES).title(), rng.randint(1, 500)) for _ in range(rng.randint(3, 7))]
        lines = ["name,amount", f'"{rng.choice(NAMES).title()}, Dr",{rows[0][1]}']
        lines += [f"{name},{amount}" for name, amount in rows[1:]]
        cases.append(("\n".join(lines) + "\n", f"{sum(amount for _, amount in rows)}\n"))
    return mend(
        "A program should add up the column 'amount' of the CSV file it reads; names in it may be quoted and "
        "hold commas.",
        file="amounts.py", broken=broken, mended=mended, cases=cases,
    )  # fmt: skip


def endless_search(rng: random.Random) -> Chore:
    """A binary search that never ends when the number is not there."""
    broken = (
        "numbers = [int(word) for word in input().split()]\nwanted = int(input())\n"
        "low, high = 0, len(numbers)\nwhile low < high:\n    middle = (low + high) // 2\n"
        "    if numbers[middle] <= wanted:\n        low = middle\n    else:\n        high = middle\n"
        "print(low)\n"
    )
    mended = broken.replace("low = middle\n", "low = middle + 1\n")
    cases = []
    for _ in range(4):
        numbers = sorted(rng.sample(range(200), rng.randint(4, 9)))
        wanted = rng.randrange(numbers[0], 200)
        cases.append(
            (" ".join(map(str, numbers)) + f"\n{wanted}\n", f"{sum(n <= wanted for n in numbers)}\n")
        )
    return mend(
        "A program reads sorted numbers and, on the next line, another one; it should print how many of them "
        "are not above that one, and never ends instead.",
        file=rng.choice(("search.py", "rank.py")), broken=broken, mended=mended, cases=cases,
    )  # fmt: skip


def shared_basket(rng: random.Random) -> Chore:
    """A list that all baskets share, in a module used by a program that the agent never sees."""
    things = rng.sample(WORDS, 4)
    module = f"{rng.choice(('basket', 'cart', 'shelf'))}{rng.randint(1, 99)}"
    broken = "def put(thing, basket=[]):\n    basket.append(thing)\n    return basket\n"
    mended = "def put(thing, basket=None):\n    return [*(basket or []), thing]\n"
    driver = (
        f"import sys\nfrom {module} import put\n\na, b = sys.stdin.read().split()\n"
        "print(put(a), put(b), put(b, [a]))\n"
    )
    expected = [f"['{a}'] ['{b}'] ['{a}', '{b}']\n" for a, b in (things[:2], things[2:])]
    return Chore(
        f"The function put of {module}.py puts a thing into a basket, a new one if none is given, and "
        "returns the basket. Two new baskets turn out to be the same one. Mend it.",
        files={f"{module}.py": broken},
        check=[
            {
                "run": ["python3", "driver.py"],
                "files": {"driver.py": driver},
                "stdin": f"{a} {b}\n",
                "equals": text,
            }
            for (a, b), text in zip((things[:2], things[2:]), expected, strict=True)
        ],
        oracle={"files": {f"{module}.py": mended}},
        cheats=[
            {"files": {f"{module}.py": f"print({expected[0]!r}, end='')\nimport os\nos._exit(0)\n"}},
            {"files": {"driver.py": f"print({expected[0]!r}, end='')\n"}},
        ],
    )


FAMILIES = (
    sum_to_n, mean_of_numbers, count_a_word, sort_by_length, leap_years, roman_numerals, little_calculator,
    too_slow, lines_of_files, quoted_commas, endless_search, shared_basket,
)  # fmt: skip
