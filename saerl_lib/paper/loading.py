"""Samples of the published sets: from the local copies under `SAERL_DATA_DIR`, or streamed from the hub on request.

Both go through the same reader: a row of a local copy is first given the hub's field names. Nothing here falls back to the
network by itself; `from_hub` alone reaches it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saerl_lib.data.real import read_lines
from saerl_lib.data.schema import DataError, Sample
from saerl_lib.paper.hub import BENCHMARKS, TRAINING_DATA, HubData
from saerl_lib.paper.rows import READERS, Row

SETS: dict[str, HubData] = {data.name: data for data in (*TRAINING_DATA, *BENCHMARKS)}
"""Every published set by its name."""

LOCAL_FIELDS: dict[str, dict[str, str]] = {
    "deepmath": {"question": "question", "final_answer": "answer", "difficulty": "level", "topic": "subject"},
    "deepscaler": {"problem": "question", "answer": "answer", "solution": "solution", "pass_rate": "pass_rate"},
    "aime24": {"problem": "question", "answer": "answer"},
    "amc23": {"question": "question", "answer": "answer"},
    "gsm8k": {"question": "question", "answer": "solution"},
    "math500": {"problem": "question", "answer": "answer", "solution": "solution", "subject": "subject", "level": "level"},
    "minerva": {"question": "question", "answer": "answer"},
    "olympiadbench": {"question": "question", "final_answer": "answer", "subfield": "subject"},
}
"""The hub's field name -> the local copy's, by set."""
LISTS = ("final_answer",)
"""Fields that OlympiadBench publishes as lists."""


def as_published(data: HubData, record: dict[str, Any]) -> Row:
    """A row of a local copy under the hub's field names; the id loses the set's name.

    >>> as_published(SETS["amc23"], {"id": "amc23-0", "question": "2+2?", "answer": "4"})
    {'id': '0', 'question': '2+2?', 'answer': '4'}
    """
    row: dict[str, Any] = {"id": str(record["id"]).rpartition("-")[2]} if "id" in record else {}
    for published, local in LOCAL_FIELDS[data.name].items():
        if local in record:
            row[published] = [record[local]] if data.name == "olympiadbench" and published in LISTS else record[local]
    if "unique_id" in (meta := record.get("meta") or {}):
        row["unique_id"] = meta["unique_id"]
    return row


def from_folder(data: HubData, folder: Path, limit: int | None = None) -> Iterator[Sample]:
    """Samples of the local copy in `folder`, the first `limit` of them.

    Raises DataError when there is no local copy, for a line that is no JSON object, and what the reader raises.
    """
    if data.local_file is None:
        raise DataError(f"{data.repository}: there is no local copy; read it with from_hub")
    rows = (line for line in read_lines(folder / data.local_file) if line.strip())
    for index, line in enumerate(itertools.islice(rows, limit)):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{data.local_file}, line {index + 1}: not JSON ({error.msg}); write one object a line") from error
        if not isinstance(record, dict):
            raise DataError(f"{data.local_file}, line {index + 1}: expected a JSON object, found {type(record).__name__}")
        yield READERS[data.name](as_published(data, record), index)


def published_rows(data: HubData, limit: int | None = None) -> Iterator[Row]:
    """Rows streamed from the hub at the pinned revision, without remote code, the first `limit` of them.

    `data.repository` may name a folder on disk in the same format, which needs no revision.
    Raises DataError when the revision is not pinned, and what `datasets.load_dataset` raises.
    """
    if data.revision is None and not Path(data.repository).is_dir():
        raise DataError(
            f"{data.repository}: the revision is not pinned yet; look up the commit you want and pass "
            "dataclasses.replace(data, revision=...), so that the same rows are read again"
        )
    from datasets import load_dataset

    stream = load_dataset(
        data.repository, name=data.configuration, data_files=data.data_file, split=data.split,
        revision=data.revision, streaming=True,
    )  # fmt: skip
    return itertools.islice(stream, limit)


def from_hub(data: HubData, limit: int | None = None) -> Iterator[Sample]:
    """Samples of `published_rows`. Raises what that and the set's reader raise."""
    for index, row in enumerate(published_rows(data, limit)):
        yield READERS[data.name](row, index)
