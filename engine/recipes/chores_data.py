"""A seeded random generator -> one chore with files: rename, merge, count, convert, pack, write."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from verigrad.engine.recipes.chore import Chore, hard_coded, runs
from verigrad.engine.recipes.chores_fix import NAMES, WORDS


def leaves(
    prompt: str,
    *,
    file: str,
    text: str,
    files: dict[str, str],
    renamed: Sequence[str],
    compare: str = "tokens",
) -> Chore:
    """A chore that is done when one file holds this text."""
    lines = text.splitlines(keepends=True)
    return Chore(
        prompt,
        check=[{"file": file, "equals": text, "compare": compare}],
        oracle={"files": {file: text}},
        files=files,
        cheats=[
            {"files": {file: ""}},
            {"files": {file: "".join(lines[:-1])}},
            {"files": {file: text + text}},
        ],
        renamed=renamed,
    )


def rename_endings(rng: random.Random) -> Chore:
    """Every .jpeg becomes .jpg; a look-alike stays."""
    names = rng.sample(WORDS, 5)
    files = {f"photos/{name}.jpeg": f"picture of {name} {rng.randint(1, 99)}\n" for name in names}
    files["photos/jpeg.txt"] = "notes\n"
    check: list[dict[str, Any]] = [
        {"file": path.replace(".jpeg", ".jpg"), "equals": text, "compare": "exact"}
        for path, text in files.items()
    ]
    check += [{"file": path, "exists": False} for path in files if path.endswith(".jpeg")]
    mv = 'cd photos && for f in *.jpeg; do mv "$f" "${f%.jpeg}.jpg"; done'
    copy = 'cd photos && for f in *.jpeg; do cp "$f" "${f%.jpeg}.jpg"; done'
    touch = 'cd photos && for f in *.jpeg; do : > "${f%.jpeg}.jpg"; rm "$f"; done'
    return Chore(
        "Rename every file in the folder photos that ends in .jpeg so that it ends in .jpg instead.",
        check=check,
        oracle={"commands": [mv]},
        files=files,
        cheats=[{"commands": [copy]}, {"commands": [touch]}],
        renamed=("photos",),
    )


def merge_tables(rng: random.Random) -> Chore:
    """Two CSV files, some rows in both."""
    people = {number: rng.choice(NAMES) for number in rng.sample(range(100, 999), 9)}
    ids = list(people)
    parts = {"a.csv": ids[:6], "b.csv": ids[4:]}
    files = {
        name: "id,name\n" + "".join(f"{number},{people[number]}\n" for number in part)
        for name, part in parts.items()
    }
    text = "id,name\n" + "".join(f"{number},{people[number]}\n" for number in sorted(people))
    return leaves(
        "Merge a.csv and b.csv into merged.csv: one header, every id once, sorted by id.",
        file="merged.csv", text=text, files=files,
        renamed=("a.csv", "b.csv", "merged.csv",),
    )  # fmt: skip


def totals_by_kind(rng: random.Random) -> Chore:
    """Sums by group, as JSON."""
    kinds = rng.sample(WORDS, 3)
    sold = [(rng.choice(kinds), rng.randint(1, 60)) for _ in range(20)]
    totals = {kind: sum(num for k, num in sold if k == kind) for kind in sorted({k for k, _ in sold})}
    wrong = {**totals, sold[0][0]: totals[sold[0][0]] + 1}
    return Chore(
        "sales.csv has a kind and a number in each line. Write totals.json: an object with the sum of the "
        "numbers of each kind.",
        check=[{"file": "totals.json", "json": totals}],
        oracle={"files": {"totals.json": json.dumps(totals)}},
        files={"sales.csv": "kind,number\n" + "".join(f"{kind},{num}\n" for kind, num in sold)},
        cheats=[
            {"files": {"totals.json": json.dumps(wrong)}},
            {"files": {"totals.json": json.dumps({kind: str(num) for kind, num in totals.items()})}},
            {"files": {"totals.json": "{}"}},
        ],
        renamed=(
            "sales.csv",
            "totals.json",
        ),
    )


def unique_words(rng: random.Random) -> Chore:
    """Each word once, in order."""
    words = rng.choices(WORDS + NAMES, k=40)
    lines = [" ".join(words[i : i + 8]) for i in range(0, 40, 8)]
    return leaves(
        "Write words.txt: every word of text.txt once, one a line, in the order of the alphabet.",
        file="words.txt", text="".join(f"{word}\n" for word in sorted(set(words))),
        files={"text.txt": "\n".join(lines) + "\n"},
        renamed=("text.txt", "words.txt",),
    )  # fmt: skip


def pack_documents(rng: random.Random) -> Chore:
    """A tar archive, looked at by unpacking it."""
    names = sorted(rng.sample(WORDS, 3))
    files = {f"docs/{name}.md": f"# {name}\n{rng.randint(1, 999)}\n" for name in names}
    files["docs/draft.tmp"] = "not this one\n"
    check = [
        {"run": ["tar", "-xzOf", "backup.tar.gz", path], "equals": text}
        for path, text in files.items()
        if path.endswith(".md")
    ]
    listing = ["sh", "-c", "tar -tzf backup.tar.gz | grep -v '/$'"]
    paths = "".join(f"docs/{name}.md\n" for name in names)
    return Chore(
        "Pack the .md files of the folder docs, and nothing else, into backup.tar.gz, with their paths from "
        "here (docs/...).",
        check=[*check, {"run": listing, "equals": paths, "compare": "lines"}],
        oracle={"commands": ["tar -czf backup.tar.gz docs/*.md"]},
        files=files,
        cheats=[
            {"commands": ["tar -czf backup.tar.gz docs"]},
            {"commands": [f"tar -czf backup.tar.gz docs/{names[0]}.md"]},
            {"files": {"backup.tar.gz": paths}},
        ],
        renamed=(
            "docs",
            "backup.tar.gz",
        ),
    )


def greeting_script(rng: random.Random) -> Chore:
    """A script to write, tried with names the agent has not seen."""
    greeting = rng.choice(("Hello", "Welcome", "Good day"))
    file = rng.choice(("greet.sh", "hello.sh"))
    who = [name.title() for name in rng.sample(NAMES, 3)]
    check = [{"run": ["sh", file, name], "equals": f"{greeting}, {name}!\n"} for name in (*who, "Ann Lee")]
    return Chore(
        f"Write a shell script {file} that greets whoever is named by its first argument: for {who[0]} it "
        f"prints {f'{greeting}, {who[0]}!'!r}. A name may hold blanks.",
        check=check,
        oracle={"files": {file: f'printf "%s\\n" "{greeting}, $1!"\n'}},
        cheats=[{"files": {file: f"echo '{greeting}, {who[0]}!'\n"}}, {"files": {file: "exit 0\n"}}],
    )


def settings_to_json(rng: random.Random) -> Chore:
    """An .ini file as JSON."""
    sections = {
        section: {key: str(rng.randint(1, 99)) for key in rng.sample(NAMES, 2)}
        for section in rng.sample(WORDS, 3)
    }
    text = "".join(
        f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()) + "\n"
        for section, keys in sections.items()
    )
    return Chore(
        "Turn settings.ini into settings.json: an object with one object for each section, its values as "
        "text.",
        check=[{"file": "settings.json", "json": sections}],
        oracle={"files": {"settings.json": json.dumps(sections)}},
        files={"settings.ini": text},
        cheats=[
            {"files": {"settings.json": text}},
            {
                "files": {
                    "settings.json": json.dumps(
                        {s: {k: int(v) for k, v in keys.items()} for s, keys in sections.items()}
                    )
                }
            },
        ],
        renamed=(
            "settings.ini",
            "settings.json",
        ),
    )


def hide_addresses(rng: random.Random) -> Chore:
    """E-mail addresses in a letter."""
    letter, clean = [], []
    for number in range(5):
        name = rng.choice(NAMES)
        address = f"{name}{rng.randint(1, 99)}@{rng.choice(WORDS)}.{rng.choice(('org', 'com'))}"
        letter.append(f"Line {number}: write to {address} about the {rng.choice(WORDS)}.")
        clean.append(letter[-1].replace(address, "[hidden]"))
    letter.append("Meet at @noon, 5 @ 3.")
    clean.append(letter[-1])
    return leaves(
        "Replace every e-mail address in letter.txt by [hidden], and change nothing else.",
        file="letter.txt", text="\n".join(clean) + "\n", files={"letter.txt": "\n".join(letter) + "\n"},
        compare="exact",
        renamed=("letter.txt",),
    )  # fmt: skip


def turn_table(rng: random.Random) -> Chore:
    """Rows become columns."""
    table = [[str(rng.randint(1, 99)) for _ in range(4)] for _ in range(rng.randint(3, 5))]
    turned = [list(column) for column in zip(*table, strict=True)]
    return leaves(
        "table.tsv has columns with tabs between. Write turned.tsv, in which its rows are the columns.",
        file="turned.tsv", text="".join("\t".join(row) + "\n" for row in turned),
        files={"table.tsv": "".join("\t".join(row) + "\n" for row in table)},
        renamed=("table.tsv", "turned.tsv",),
    )  # fmt: skip


def most_frequent(rng: random.Random) -> Chore:
    """The three most frequent words."""
    words = rng.sample(WORDS, 6)
    text = [word for word, times in zip(words, (9, 7, 5, 3, 2, 1), strict=True) for _ in range(times)]
    rng.shuffle(text)
    top = Counter(text).most_common(3)
    return leaves(
        "Write top.txt: the three most frequent words of text.txt, the most frequent first, each on a line "
        "with its number, as in 'word 12'.",
        file="top.txt", text="".join(f"{word} {num}\n" for word, num in top),
        files={"text.txt": "\n".join(" ".join(text[i : i + 6]) for i in range(0, len(text), 6)) + "\n"},
        renamed=("text.txt", "top.txt",),
    )  # fmt: skip


def sort_into_files(rng: random.Random) -> Chore:
    """One file for each level."""
    levels = ("info", "warn", "error")
    lines = [f"{rng.choice(levels)}: {rng.choice(WORDS)} {rng.randint(1, 99)}" for _ in range(15)]
    lines += [f"{level}: last {level}" for level in levels]
    parts = {f"by/{level}.txt": [one for one in lines if one.startswith(f"{level}:")] for level in levels}
    files = {path: "\n".join(part) + "\n" for path, part in parts.items()}
    return Chore(
        "Each line of app.log begins with info:, warn: or error:. Put the lines of each kind, unchanged and "
        "in order, into by/info.txt, by/warn.txt and by/error.txt.",
        check=[{"file": path, "equals": text} for path, text in files.items()],
        oracle={"files": files},
        files={"app.log": "\n".join(lines) + "\n"},
        cheats=[
            {"files": dict.fromkeys(files, "\n".join(lines) + "\n")},
            {"files": {path: text for path, text in files.items() if "error" not in path}},
        ],
        renamed=("app.log",),
    )


def checksums(rng: random.Random) -> Chore:
    """A manifest, lines in any order."""
    files = {f"data/{name}.bin": f"{name} {rng.randint(1, 10**6)}\n" for name in rng.sample(WORDS, 4)}
    sums = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in files.items()}
    text = "".join(f"{digest}  {path}\n" for path, digest in sums.items())
    return leaves(
        "Write SHA256SUMS: a line for each file in data with its SHA-256 sum and its path from here, as "
        "sha256sum writes it.",
        file="SHA256SUMS", text=text, files=files, compare="lines",
        renamed=("data", "SHA256SUMS",),
    )  # fmt: skip


def dates_to_iso(rng: random.Random) -> Chore:
    """Day/month/year becomes year-month-day."""
    rows = [
        (rng.choice(NAMES), rng.randint(1, 28), rng.randint(1, 12), rng.randint(1990, 2030)) for _ in range(8)
    ]
    old = "name,born\n" + "".join(f"{n},{d:02}/{m:02}/{y}\n" for n, d, m, y in rows)
    new = "name,born\n" + "".join(f"{n},{y}-{m:02}-{d:02}\n" for n, d, m, y in rows)
    return leaves(
        "The dates in people.csv are written day/month/year. Rewrite them in place as year-month-day, with "
        "two digits for month and day.",
        file="people.csv", text=new, files={"people.csv": old},
        renamed=("people.csv",),
    )  # fmt: skip


def clean_up(rng: random.Random) -> Chore:
    """Temporary files go, wherever they are; others stay."""
    ending = f"{rng.choice(('tmp', 'bak', 'old', 'swp'))}{rng.randint(1, 99)}"
    folders, names = rng.sample(WORDS, 3), rng.sample(NAMES, 6)
    gone = [f"{folders[i % 3]}/{name}.{ending}" for i, name in enumerate(names[:4])]
    kept = {f"{folders[0]}/{names[4]}.txt": "keep\n", f"{folders[2]}/{ending}.md": "keep this, too\n"}
    return Chore(
        f"Delete every file below this folder that ends in .{ending}, however deep, and no other.",
        check=[
            *({"file": path, "exists": False} for path in gone),
            *({"file": path, "equals": text} for path, text in kept.items()),
        ],
        oracle={"commands": [f"find . -name '*.{ending}' -delete"]},
        files={**dict.fromkeys(gone, "temporary\n"), **kept},
        cheats=[{"commands": [f"rm -r {' '.join(folders)}"]}, {"commands": [f"rm {folders[0]}/*.{ending}"]}],
    )


def write_a_program(rng: random.Random) -> Chore:
    """A program from nothing, tried with inputs the agent has not seen."""
    divisor = rng.randint(3, 9)
    cases = []
    for _ in range(4):
        numbers = [rng.randint(1, 200) for _ in range(8)] + [divisor * rng.randint(1, 20)]
        fits = [n for n in numbers if n % divisor == 0]
        cases.append((" ".join(map(str, numbers)) + "\n", f"{len(fits)} {sum(fits)}\n"))
    solution = (
        f"fits = [n for n in map(int, input().split()) if n % {divisor} == 0]\nprint(len(fits), sum(fits))\n"
    )
    return Chore(
        "Write a program multiples.py that reads one line of numbers and prints how many of them can be "
        f"divided by {divisor}, and their sum: for {cases[0][0].strip()!r} it prints "
        f"{cases[0][1].strip()!r}.",
        check=runs(["python3", "multiples.py"], cases),
        oracle={"files": {"multiples.py": solution}},
        cheats=[
            {"files": {"multiples.py": hard_coded("python3", cases[:1])}},
            {"files": {"multiples.py": "import os\nos._exit(0)\n"}},
        ],
    )


FAMILIES = (
    rename_endings, merge_tables, totals_by_kind, unique_words, pack_documents, greeting_script,
    settings_to_json, hide_addresses, turn_table, most_frequent, sort_into_files, checksums, dates_to_iso,
    clean_up, write_a_program,
)  # fmt: skip
