"""The final answer of a completion of any policy: behind `Answer:` or in a box (ours; the paper states no format)."""

from __future__ import annotations

import re

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
LINE = re.compile(r"Answer:[ ]*([^\n]*)")


def read_final_answer(completion: str) -> str | None:
    r"""The last `\boxed{...}`, braces balanced, or text behind `Answer:`, whichever comes later; None without one.

    A box that is not closed, as in a completion that was cut, is no answer.

    >>> read_final_answer("So \\boxed{\\frac{1}{2}}."), read_final_answer("Answer: 7"), read_final_answer("\\boxed{1")
    ('\\frac{1}{2}', '7', None)
    """
    found = [(m.start(), m.group(1).strip()) for m in LINE.finditer(completion)]
    for match in BOX.finditer(completion):
        content = _balanced(completion, match.end())
        if content is not None:
            found.append((match.start(), content.strip()))
    answers = [answer for _, answer in sorted(found) if answer]
    if not answers:
        return None
    inner = BOX.search(answers[-1])  # 'Answer: \boxed{7}' is found once as a line and once as a box
    boxed = _balanced(answers[-1], inner.end()) if inner else None
    return boxed.strip() if boxed else answers[-1].strip("$ ")


def _balanced(text: str, start: int) -> str | None:
    """The text from `start` to the brace that closes it, None when there is none."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None
