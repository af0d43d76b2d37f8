"""An example file of problems, written from the embedded world: what a user's own file may look like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from saerl_lib.data.sample import Sample


def write_example(samples: Sequence[Sample], path: Path) -> Path:
    """JSON lines with id, question, answer, solution, subject and level; returns the path."""
    rows = [
        {
            "id": s.id, "question": s.prompt, "answer": s.answer, "solution": "\n".join(s.steps),
            "subject": s.topic.split(" -> ")[0], "level": s.difficulty,
        }
        for s in samples
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
