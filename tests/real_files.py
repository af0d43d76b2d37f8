"""Small files of labelled problems, and of the names and schema of the real labelled sets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

FILES = (
    "math_train", "gsm8k_train", "deepmath_18k", "deepscaler_pass_rate", "math_test", "gsm8k_test", "quality_valimath",
    "dsr_sub_training_accuracy", "eval_math500", "eval_aime24", "eval_amc23", "eval_minerva_math", "eval_olympiadbench",
)  # fmt: skip


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    """A row a line; returns the path as a command takes it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problems(n: int, **labels: Any) -> list[dict[str, Any]]:
    """n rows of a labelled file; a label is a value or a function of the row's number."""
    return [
        {"id": f"p{i}", "question": f"What is {i} plus {i * 7 % 13}?", "answer": "1"}
        | {name: (value(i) if callable(value) else value) for name, value in labels.items()}
        for i in range(n)
    ]


def rows(n: int = 60, **extra: Any) -> list[dict[str, Any]]:
    """n problems of three kinds; the level grows with the numbers, not with the length."""
    kinds = ("Add {} and {}.", "What is the area of a {} by {} rectangle?", "Find the remainder of {} divided by {}, a prime.")
    return [
        {"id": f"p-{i}", "question": kinds[i % 3].format(7 * i + 3, 11 + 13 * (i % 17)), "answer": str(i),
         "solution": f"Step one of {i}.\nStep two.", "subject": f"kind {i % 3}", "level": 1 + i % 17 // 4, **extra}
        for i in range(n)
    ]  # fmt: skip


def write_real_files(folder: Path) -> Path:
    """80 problems a set and 3 an evaluation set, all different but one: the first of eval_aime24 is the third of math_train.

    Those have solutions that have them as published: MATH, GSM8K and the evaluation sets.
    """
    folder.mkdir()
    for number, name in enumerate(FILES):
        rows = [
            {"id": f"{name}-{i}", "question": f"What is {i} plus {number * 100 + i * 7 % 31}?", "answer": "1", "level": i % 5,
             "solution": f"the sum of {i} is {i % 7}\nplus {i % 3} is {i}", "subject": "ab"[i % 2]}
            for i in range(3 if name.startswith("eval_") else 80)
        ]  # fmt: skip
        for i, row in enumerate(rows):
            own = {
                "deepscaler_pass_rate": {"pass_rate": i % 9 / 8},
                "quality_valimath": {"valid": i % 3 > 0},
                "dsr_sub_training_accuracy": {"meta": {"train_acc_history": [i % 3 / 2, i % 5 / 4]}},
            }
            row |= own.get(name, {})
            if not name.startswith(("math", "gsm8k", "eval")):
                del row["solution"]
        if name == "eval_aime24":
            rows[0]["question"] = "What is 2  plus 14?"
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(json.dumps(r) for r in rows).encode()))
    return folder
