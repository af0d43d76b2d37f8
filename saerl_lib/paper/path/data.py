"""Step `data`: the published rows as samples without doubles, without benchmark questions, and every row counted.

DeepMath-103K is the target source and carries the difficulty labels; of NuminaMath-1.5 a fixed random part joins it in the
noisy pool (paper, Table 6); DeepScaleR serves the out-of-domain regimes where its rows are labelled, PRM800K the quality of
solutions. Questions are the same when their text is, but for case, white space and marks; paraphrases are not found.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd

from saerl_lib.artifacts import Stage
from saerl_lib.data.published import BENCHMARKS, READERS, UNJUDGED, Reader, deepmath, published_rows
from saerl_lib.data.sample import DataError, Sample, hash_share, normalise, read_samples, write_samples
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.home import Home
from saerl_lib.paper.path.places import data_identity, data_set, sets_to_read

SETS = tuple(data.name for data in BENCHMARKS)
"""The six evaluation sets."""
GROUPS = ("labelled", "target", "parent", "outside", "rated")
"""Groups of samples that are encoded: L, the rest of DeepMath, NuminaMath-1.5, DeepScaleR, PRM800K."""


class Rows:
    """The rows of one run, judged one after another; what is not taken is counted under its reason."""

    def __init__(self, config: PaperConfig) -> None:
        self.config = config
        self.counts: Counter[tuple[str, str]] = Counter()
        self.bad: list[tuple[str, str]] = []
        self.seen: dict[str, str] = {}
        """Normalised question -> the set that it was first seen in."""

    def read(self, name: str) -> Iterator[Sample]:
        """Every well-formed row of a set. Raises DataError at a malformed one unless they are to be skipped."""
        reader: Reader = READERS[name]
        if name == "deepmath":
            reader = partial(deepmath, solution_index=self.config.solution_index)
        for index, row in enumerate(published_rows(data_set(self.config, name))):
            self.counts[name, "read"] += 1
            try:
                sample = reader(row, index)
            except DataError as error:
                if not self.config.skip_bad_rows:
                    raise DataError(f"{error}; or pass --skip-bad-rows to leave such rows out and list them") from error
                self.counts[name, "malformed"] += 1
                self.bad.append((name, str(error)))
                continue
            yield sample

    def benchmark(self, name: str) -> list[Sample]:
        """All problems of an evaluation set; their questions are kept out of what follows."""
        samples = list(self.read(name))
        for sample in samples:
            self.seen.setdefault(normalise(sample.prompt), name)
        return samples

    def fresh(self, name: str) -> Iterator[tuple[float, Sample]]:
        """(hash of the question in [0, 1), sample) of the rows that can be trained on and were not seen before."""
        for sample in self.read(name):
            key = normalise(sample.prompt)
            if not sample.answer.strip():
                self.counts[name, "no answer to check"] += 1
            elif sample.flaw:
                self.counts[name, f"{sample.flaw} called not valid by the set"] += 1
            elif key in self.seen:
                other = self.seen[key]
                self.counts[name, "question occurs twice" if other == name else f"question is in {other}"] += 1
            else:
                self.seen[key] = name
                yield hash_share(key), sample

    def drawn(self, name: str, count: int, with_label: bool = False) -> list[Sample]:
        """The first `count` fresh rows by the hash of their question, in that order; `with_label`: of those with a difficulty."""
        heap: list[tuple[float, str, Sample]] = []
        for share, sample in self.fresh(name):
            if with_label and not math.isfinite(sample.difficulty):
                self.counts[name, "no difficulty label"] += 1
                continue
            self._draw(heap, (-share, sample.id, sample), count, name)
        return [sample for *_, sample in sorted(heap, key=lambda entry: -entry[0])]

    def rated(self, name: str, count: int) -> list[Sample]:
        """The first `count` solutions with step labels by the hash of their question; a question may have several."""
        heap: list[tuple[float, str, Sample]] = []
        for sample in self.read(name):
            if sample.flaw in UNJUDGED or not sample.step_labels:
                self.counts[name, f"step labels judge no solution ({sample.flaw or 'none'})"] += 1
                continue
            self._draw(heap, (-hash_share(normalise(sample.prompt)), sample.id, sample), count, name)
        return [sample for *_, sample in sorted(heap, key=lambda entry: (-entry[0], entry[1]))]

    def _draw(self, heap: list[tuple[float, str, Sample]], entry: tuple[float, str, Sample], count: int, name: str) -> None:
        if len(heap) < count:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
            self.counts[name, "beyond the number drawn"] += 1


def data_stage(home: Home) -> Stage:
    """Parquet of each group and evaluation set, counts.csv and malformed.csv.

    Raises DataError for missing sets, malformed rows, repeated ids, too few labels, and a target or parent without a row.
    """
    config = home.config
    names = sets_to_read(config)
    settings = {
        "sets": {name: data_identity(config, name) for name in names}, "solution": config.solution_index,
        "labelled": config.labelled_samples, "parent": config.filter_samples, "skip": config.skip_bad_rows,
        "outside": config.outside_samples + config.adapted_labels, "rated": config.rated_samples,
    }  # fmt: skip

    def compute(folder: Path) -> None:
        rows = Rows(config)
        groups: dict[str, list[Sample]] = {f"eval_{name}": rows.benchmark(name) for name in SETS}
        target = [sample for _, sample in sorted(rows.fresh("deepmath"), key=lambda pair: pair[0])]
        chosen = _labelled(target, config.labelled_samples)
        groups["labelled"], groups["target"] = chosen, _without(target, chosen)
        apart = dict(rows.seen)  # what DeepScaleR may not repeat: NuminaMath-1.5, drawn from or not, is never tested with it
        groups["parent"] = rows.drawn("numinamath", config.filter_samples)
        rows.seen = apart
        groups["outside"] = rows.drawn("deepscaler", settings["outside"], with_label=True) if "deepscaler" in names else []
        groups["rated"] = rows.rated("prm800k", config.rated_samples) if "prm800k" in names else []
        _require_filled(groups, config)
        for name, samples in groups.items():
            _require_distinct(name, samples)
            write_samples(samples, folder / f"{name}.parquet")
            rows.counts[name, "kept"] += len(samples)
        counted = [(name, what, n) for (name, what), n in sorted(rows.counts.items()) if n]
        pd.DataFrame(counted, columns=["source", "what", "n"]).to_csv(folder / "counts.csv", index=False, lineterminator="\n")
        pd.DataFrame(rows.bad, columns=["source", "problem"]).to_csv(folder / "malformed.csv", index=False, lineterminator="\n")

    return home.stage("data", "data", settings, compute)


def group(data: Stage, name: str) -> list[Sample]:
    """Samples of one of `GROUPS`, or of `eval_<set>`."""
    return read_samples(data.path(f"{name}.parquet"))


def _labelled(target: list[Sample], count: int) -> list[Sample]:
    """L: the first `count` labelled samples in hash order (paper, section 3.3: 3,000)."""
    with_label = [sample for sample in target if math.isfinite(sample.difficulty)]
    if len(with_label) < count:
        raise DataError(f"deepmath: {len(with_label)} rows carry a difficulty, fewer than --labelled {count}: lower it")
    return with_label[:count]


def _without(samples: list[Sample], chosen: list[Sample]) -> list[Sample]:
    names = {sample.id for sample in chosen}
    return [sample for sample in samples if sample.id not in names]


def _require_filled(groups: dict[str, list[Sample]], config: PaperConfig) -> None:
    """L may not take all of the target, and the noisy pool needs rows of both sources."""
    if not groups["target"]:
        raise DataError(f"deepmath: no row is left beside the {config.labelled_samples} labelled ones: lower --labelled")
    if not groups["parent"]:
        raise DataError("numinamath: no row can be trained on: each has no checkable answer, is called not valid, or is known")


def _require_distinct(name: str, samples: list[Sample]) -> None:
    rows = Counter(sample.id for sample in samples)
    twice = [(i, n) for i, n in rows.items() if n > 1]
    if twice:
        others = f", and {len(twice) - 1} more ids occur several times" if len(twice) > 1 else ""
        raise DataError(f"{name}: id {twice[0][0]!r} is given to {twice[0][1]} rows{others}; ids must be unique")
