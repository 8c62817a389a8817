"""A text -> the answers it marks: what stands in its tags or in its boxes. All of it takes linear time."""

import re

BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
CLOSERS = re.compile(r"[\s.$*_\])}\\]*")  # of a sentence, a formula or bold type around an answer
MAX_SHOWN = 80


class Unreadable(Exception):
    """The text states no answer that can be read, or more than one; the message says which."""


def tags(text: str, name: str) -> list[tuple[str, int]]:
    """(content, where it ends) of every `<name>...</name>` that closes, in order."""
    opening, closing = f"<{name}>", f"</{name}>"
    found, at = [], 0
    while (begin := text.find(opening, at)) >= 0:
        end = text.find(closing, begin)
        if end < 0:
            break
        at = end + len(closing)
        found.append((text[begin + len(opening) : end], at))
    return found


def one_tag(text: str, name: str) -> tuple[str, str]:
    """(content, what follows) of `<name>...</name>`; Unreadable unless each tag stands there once."""
    opening, closing = f"<{name}>", f"</{name}>"
    counts = text.count(opening), text.count(closing)
    if counts == (0, 0):
        raise Unreadable(f"no {opening} tags")
    before, _, rest = text.partition(opening)
    content, closed, after = rest.partition(closing)
    if counts != (1, 1) or not closed or closing in before:
        raise Unreadable(f"{counts[0]} {opening} and {counts[1]} {closing}, not one of each in this order")
    return content, after


def boxes(text: str) -> list[tuple[str, int]]:
    r"""(content, where it ends) of every `\boxed{...}` that closes; of nested boxes only the innermost."""
    found: list[tuple[str, int]] = []
    opened: list[int] = []  # for each open brace where its box's content begins, or -1
    newest = -1  # where the latest closed box began
    for match in BOX_TOKEN.finditer(text):
        token = match.group()
        if token == "{":
            opened.append(-1)
        elif token == "}" and opened:
            begin = opened.pop()
            if begin > newest:
                found.append((text[begin : match.start()], match.end()))
                newest = begin
        elif token.endswith("{") and len(token) > 2:
            opened.append(match.end())
    return found


def one_box(text: str) -> tuple[str, str]:
    """(content, what follows) of the boxes, which must all say the same."""
    found = boxes(text)
    if not found:
        raise Unreadable("no closed box")
    contents = {" ".join(content.split()) for content, _ in found}
    if len(contents) > 1:
        raise Unreadable(f"{len(contents)} boxes that differ")
    content, end = found[-1]
    return content, text[end:]


def last_line(text: str) -> str:
    """The last line that is not blank."""
    return text.rstrip().rpartition("\n")[2].strip()


def nothing_follows(after: str) -> None:
    """Unreadable if more follows an answer than the end of its sentence or formula."""
    if not CLOSERS.fullmatch(after):
        raise Unreadable(f"goes on after the answer: {short(after)}")


def short(text: str) -> str:
    """A piece of the model's text for a reason: one line, at most 80 characters."""
    line = " ".join(text[: 4 * MAX_SHOWN].split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 3] + "..."
