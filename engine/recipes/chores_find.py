"""A seeded random generator -> one question whose answer lies somewhere in the files of a folder."""

import base64
import itertools
import json
import random
from typing import Any

from verigrad.engine.recipes.chore import Chore, asks
from verigrad.engine.recipes.chores_fix import NAMES, WORDS


def failed_request(rng: random.Random) -> Chore:
    """The one line of several logs."""
    files, wanted, other = {}, "", ""
    bad = rng.randrange(3)
    for number in range(3):
        lines = []
        for _ in range(rng.randint(15, 30)):
            request = f"r{rng.randint(10_000, 99_999)}"
            lines.append(f"{request} GET /{rng.choice(WORDS)} {rng.choice((200, 200, 201, 304, 404))}")
            other = request
        if number == bad:
            wanted = f"r{rng.randint(10_000, 99_999)}x"
            lines.insert(rng.randrange(len(lines)), f"{wanted} POST /{rng.choice(WORDS)} 500")
        files[f"logs/day{number + 1}.log"] = "\n".join(lines) + "\n"
    return asks(
        "The folder logs holds three days of requests, one a line: id, method, path, status. Exactly one "
        "request ended with status 500. What is its id?",
        wanted, files=files, guesses=[other, "500"],
        renamed=("logs",),
    )  # fmt: skip


def largest_file(rng: random.Random) -> Chore:
    """Sizes in a tree."""
    ending = f"{rng.choice(('txt', 'log', 'dat'))}{rng.randint(1, 99)}"
    paths = [f"{a}/{b}.{ending}" for a, b in zip(rng.sample(WORDS, 5), rng.sample(NAMES, 5), strict=True)]
    sizes = rng.sample(range(50, 900), 5)
    files = {path: "x" * size for path, size in zip(paths, sizes, strict=True)}
    order = sorted(paths, key=lambda path: len(files[path]))
    return asks(
        f"Which of the .{ending} files in the folders below this one is the largest? Give its path from "
        f"here, as in a/b.{ending}.",
        order[-1], files=files, guesses=[order[-2], order[0]],
    )  # fmt: skip


def setting_in_force(rng: random.Random) -> Chore:
    """Which of several files has the last word."""
    ports = rng.sample(range(2000, 9000), 4)
    key = rng.choice(("port", "limit", "retries"))
    files = {
        "README.txt": "Settings are read from base.conf, then site.conf, then user.conf; a later file wins.\n"
        "Lines that begin with # do not count.\n",
        "base.conf": f"host = localhost\n{key} = {ports[0]}\n",
        "site.conf": f"# {key} = {ports[1]}\n{key} = {ports[2]}\nname = {rng.choice(NAMES)}\n",
        "user.conf": f"# {key} = {ports[3]}\ncolour = green\n",
    }
    return asks(
        f"Which value of {key!r} is in force here? README.txt says how the settings are read.",
        str(ports[2]), files=files, guesses=[str(ports[0]), str(ports[1]), str(ports[3])],
        renamed=("README.txt",),
    )  # fmt: skip


def boss_of_boss(rng: random.Random) -> Chore:
    """Two steps through a table."""
    people = rng.sample(NAMES, 8)
    boss = {person: people[max(0, (i - 1) // 2)] for i, person in enumerate(people)}
    who = people[rng.randrange(3, 8)]
    lines = ["name,boss", *(f"{a},{b}" for a, b in rng.sample(sorted(boss.items()), len(boss)))]
    wanted = boss[boss[who]]
    return asks(
        f"staff.csv says who is whose boss. Who is the boss of {who}'s boss?",
        wanted, files={"staff.csv": "\n".join(lines) + "\n"}, guesses=[boss[who], who],
        renamed=("staff.csv",),
    )  # fmt: skip


def same_content(rng: random.Random) -> Chore:
    """Two of six files are the same."""
    names = sorted(rng.sample(WORDS, 6))
    texts = [" ".join(rng.choices(WORDS, k=12)) + f" {number}\n" for number in range(6)]
    a, b = sorted(rng.sample(range(6), 2))
    texts[b] = texts[a]
    files = {f"notes/{name}.md": text for name, text in zip(names, texts, strict=True)}
    others = [name for i, name in enumerate(names) if i not in (a, b)]
    return asks(
        "Two of the files in the folder notes have the same content. Which? Give their names without folder "
        "and ending, in the order of the alphabet, with a blank between.",
        f"{names[a]} {names[b]}", files=files, guesses=[f"{others[0]} {others[1]}", names[a]],
        renamed=("notes",),
    )  # fmt: skip


def marks_in_code(rng: random.Random) -> Chore:
    """Counting in a tree, with look-alikes."""
    files, total, all_of_them = {}, 0, 0
    for name in rng.sample(WORDS, 4):
        lines = []
        for _ in range(rng.randint(4, 12)):
            kind = rng.random()
            if kind < 0.35:
                lines.append(f"x = {rng.randint(1, 9)}  # LATER check this")
                total += 1
            elif kind < 0.6:
                lines.append(f"# later {rng.choice(WORDS)}")
                all_of_them += 1
            else:
                lines.append(f"print({rng.choice(WORDS)!r})")
        files[f"src/{name}.py"] = "\n".join(lines) + "\n"
    files["src/notes.txt"] = "LATER: write this down\nLATER: that, too\n"
    wanted = total
    return asks(
        "How many lines of the .py files in src hold the word LATER, in capital letters?",
        str(wanted), files=files, guesses=[str(wanted + 2), str(wanted + all_of_them + 3)],
        renamed=("src",),
    )  # fmt: skip


def where_defined(rng: random.Random) -> Chore:
    """A definition among its uses."""
    modules, function = rng.sample(WORDS, 5), f"{rng.choice(('load', 'make', 'read'))}_{rng.choice(NAMES)}"
    home = modules[rng.randrange(5)]
    files = {}
    for name in modules:
        body = f"import {home}\n\n\ndef main():\n    {home}.{function}()  # not def {function} here\n"
        if name == home:
            body = f"def helper():\n    pass\n\n\ndef {function}():\n    helper()\n"
        files[f"lib/{name}.py"] = body
    other = next(name for name in modules if name != home)
    return asks(
        f"In which file of the folder lib is the function {function} defined? Give the file's name, as in "
        "name.py.",
        f"{home}.py", files=files, guesses=[f"{other}.py", "main.py"],
        renamed=("lib",),
    )  # fmt: skip


def longest_gap(rng: random.Random) -> Chore:
    """Differences between lines."""
    at, times = rng.randint(1000, 5000), []
    gaps = rng.sample(range(5, 90), 12)
    for gap in gaps:
        times.append(at)
        at += gap
    times.append(at)
    return asks(
        "heartbeat.log has one line for each sign of life, its time in seconds first. How many seconds is "
        "the longest gap between two neighbouring lines?",
        str(max(gaps)), files={"heartbeat.log": "".join(f"{t} alive\n" for t in times)},
        guesses=[str(sorted(gaps)[-2]), str(at)],
        renamed=("heartbeat.log",),
    )  # fmt: skip


def nested_value(rng: random.Random) -> Chore:
    """A value inside JSON."""
    orders: list[dict[str, Any]] = [
        {
            "id": f"o{number}",
            "buyer": {"name": rng.choice(NAMES), "town": rng.choice(WORDS)},
            "items": [{"thing": rng.choice(WORDS), "price": rng.randint(2, 90)} for _ in range(3)],
        }
        for number in rng.sample(range(100, 999), 6)
    ]
    one = orders[rng.randrange(6)]
    wanted = sum(item["price"] for item in one["items"])
    return asks(
        f"orders.json holds orders. What do the items of order {one['id']} cost together?",
        str(wanted), files={"orders.json": json.dumps(orders, indent=1)},
        guesses=[str(wanted + 1), str(one["items"][0]["price"])],
        renamed=("orders.json",),
    )  # fmt: skip


def hidden_version(rng: random.Random) -> Chore:
    """A file whose name begins with a dot."""
    major, minor, patch = rng.randint(1, 9), rng.randint(0, 20), rng.randint(0, 20)
    files = {
        "package.txt": f"name: {rng.choice(WORDS)}\nversion: see the release file\n",
        ".release": f"channel stable\nversion {major}.{minor}.{patch}\n",
        "old/.release": f"channel stable\nversion {major - 1}.{minor + 1}.{patch}\n",
    }
    return asks(
        "Which version is this package? package.txt says where that is written; the file's name begins with "
        "a dot. The folder old is about an earlier one.",
        f"{major}.{minor}.{patch}", files=files,
        guesses=[f"{major - 1}.{minor + 1}.{patch}", f"{major}.{minor}"],
        renamed=("package.txt",),
    )  # fmt: skip


def paper_trail(rng: random.Random) -> Chore:
    """One note leads to the next."""
    names = rng.sample(WORDS, 6)
    words = [f"{name}{rng.randint(10, 99)}" for name in rng.sample(NAMES, 2)]
    names[0] += str(rng.randint(10, 99))
    files = {f"{a}.txt": f"Go on in {b}.txt.\n" for a, b in itertools.pairwise(names[:4])}
    files[f"{names[3]}.txt"] = f"The password is {words[0]}.\n"
    files[f"{names[4]}.txt"] = f"Go on in {names[5]}.txt.\n"
    files[f"{names[5]}.txt"] = f"The password is {words[1]}.\n"
    return asks(
        f"Begin in {names[0]}.txt and go on as it says. What is the password at the end?",
        words[0], files=files, guesses=[words[1], names[3]],
    )  # fmt: skip


def encoded_token(rng: random.Random) -> Chore:
    """Base64."""
    token = f"{rng.choice(WORDS)}-{rng.choice(NAMES)}-{rng.randint(100, 999)}"
    other = f"{rng.choice(WORDS)}-{rng.choice(NAMES)}-{rng.randint(100, 999)}"
    encoded = [base64.b64encode(text.encode()).decode() for text in (token, other)]
    lines = [f"user {rng.choice(NAMES)}", f"old_token_base64 {encoded[1]}", f"token_base64 {encoded[0]}"]
    return asks(
        "credentials.txt holds the current token in base64. What is it in plain text?",
        token, files={"credentials.txt": "\n".join(lines) + "\n"}, guesses=[other, encoded[0]],
        renamed=("credentials.txt",),
    )  # fmt: skip


FAMILIES = (
    failed_request, largest_file, setting_in_force, boss_of_boss, same_content, marks_in_code, where_defined,
    longest_gap, nested_value, hidden_version, paper_trail, encoded_token,
)  # fmt: skip
