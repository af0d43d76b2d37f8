"""The published sets: files of labelled problems in the schema of docs/real_data.md, and sets of the hub in their own schemas.

The files lie in the folder named by `SAERL_DATA_DIR`. From the sets, `needs.SETS` at their pinned revisions, `published_stage`
cuts the splits of a profile, under the names that a world has.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, file_sha256, get_or_compute
from saerl_lib.config import LadderConfig, Profile, PublishedConfig, content_hash, to_dict
from saerl_lib.data.judge import BadRow, Rules, difficulty, judge, truth
from saerl_lib.data.rows import Row, Source, rows
from saerl_lib.data.sample import DataError, LabelledSet, Sample, Split, hash_order, hash_share, normalise, write_samples
from saerl_lib.needs import SETS, HubData
from saerl_lib.settings import DEFAULTS

# Files of labelled problems.

Record = Mapping[str, Any]
SPLIT_LABELS = {"deepmath_18k": "level", "deepscaler_pass_rate": "pass_rate", "quality_valimath": "valid",
                "dsr_sub_training_accuracy": "learnability"}  # fmt: skip
"""File without an official test set -> the label that its probe reads."""


def load_labelled(path: Path) -> LabelledSet:
    """Every row of a file with its labels: subject, level (difficulty on the source's scale), pass_rate, valid (well-posed) and
    learnability (LIMR score). A level or pass rate below 0 counts as unknown, an answer may be absent. Raises DataError with
    file, line, field and fix for the first malformed row."""
    rules = Rules(DEFAULTS, need_answer=False)
    samples, metas, labels = list[Sample](), list[Record](), list[tuple[str | float, ...]]()
    for number, row in enumerate(rows(Source(str(path))), start=1):
        try:
            found, record = judge(row, number, rules), row.record or {}
            metas.append(record.get("meta", {}))
            if not isinstance(metas[-1], dict):
                raise BadRow("field 'meta' is no object; leave it out or write an object")
            level, rate = (difficulty(record.get(name), name, rules) for name in ("level", "pass_rate"))
            if rate > 1:
                raise BadRow(f"field 'pass_rate' is {rate:g}, not a share; divide by the number of attempts")
            valid = truth(record.get("valid"), "valid")
        except BadRow as problem:
            raise DataError(f"{path.name}, {row.where}: {problem}") from problem
        known = (value if value >= 0 else math.nan for value in (level, rate))
        labels.append((str(record.get("subject") or ""), *known, valid))
        samples.append(dataclasses.replace(found.sample, difficulty=level, source=str(record.get("source") or "")))
    columns = zip(("subject", "level", "pass_rate", "valid"), zip(*labels, strict=True), strict=True)
    arrays = {name: np.array(values, dtype=str if name == "subject" else float) for name, values in columns}
    arrays["learnability"] = learnability([meta.get("train_acc_history") for meta in metas])
    return LabelledSet(path.name.split(".")[0], tuple(samples), arrays)


def learnability(histories: Sequence[Sequence[float] | None]) -> np.ndarray:
    """LIMR score of each training history (arXiv 2502.11886), NaN without one, [N].

    s_i = 1 - sum_k (r_i^k - rbar^k)^2 / sum_k (1 - rbar^k)^2 over the epochs k that sample i has; rbar^k is the mean
    accuracy of epoch k over the samples that reach it.

    >>> learnability([[0.0, 1.0], [1.0, 1.0], None]).round(2).tolist()
    [0.0, 0.0, nan]
    """
    table = pd.DataFrame([dict(enumerate(h or ())) for h in histories], dtype=float)  # NaN where an epoch is missing
    mean, there = table.mean(), table.notna()
    scale = ((1 - mean) ** 2 * there).sum(axis=1)
    score = 1 - ((table - mean) ** 2).sum(axis=1) / scale.where(scale > 0, 1.0)
    return score.where(there.any(axis=1)).to_numpy(dtype=float)


def evaluation_keys(folder: Path) -> dict[str, set[str]]:
    """Evaluation set -> its normalised questions, for every `eval_*` file of a folder."""
    return {path.name.split(".")[0]: set(load_labelled(path).keys) for path in sorted(folder.glob("eval_*.jsonl*"))}


def probe_splits(load: Callable[[str], LabelledSet], config: LadderConfig, held_out: set[str]) -> dict[str, Split]:
    """The split of every file of `SPLIT_LABELS`, of its labelled rows. No training row has its question in `held_out`, and
    DeepScaleR gives up the questions that it shares with DeepMath."""
    found: dict[str, Split] = {}
    for name, label in SPLIT_LABELS.items():
        data = load(name).with_label(label)
        if name == "deepmath_18k":
            data = data.without(held_out)
        elif name == "deepscaler_pass_rate":
            data = data.without(held_out | set(load("deepmath_18k").with_label("level").keys))
        split = data.split(config.max_train, config.max_test)
        found[name] = Split(split.train.without(held_out), split.test)
    return found


def math_splits(load: Callable[[str], LabelledSet], config: LadderConfig, held_out: set[str]) -> Split:
    """MATH's official split without training questions of `held_out`, or as much of it as the profile's size allows."""
    train, test = load("math_train").without(held_out), load("math_test")
    if not config.official_split:
        sides = ((train, config.max_train), (test, config.max_test))
        train, test = (side.rows(hash_order(side.samples)[:most]) for side, most in sides)
    return Split(train, test)


def real_folder() -> Path:
    """The folder of real labelled mathematics. Raises ArtifactError when `SAERL_DATA_DIR` is not set."""
    if folder := paths.shared_data_dir():
        return folder
    raise ArtifactError("SAERL_DATA_DIR is not set; point it at the folder of labelled mathematics (docs/real_data.md)")


def data_file(stem: str) -> Path:
    """The file of one real set, gzip or plain. Raises ArtifactError when it is missing."""
    folder = real_folder()
    if found := sorted(folder.glob(f"{stem}.jsonl*"), reverse=True):
        return found[0]
    raise ArtifactError(f"{folder}: {stem}.jsonl.gz is missing; the folder must hold the sets that docs/real_data.md lists")


def load_set(stem: str) -> LabelledSet:
    """One real set by name."""
    return load_labelled(data_file(stem))


def held_out_keys() -> set[str]:
    """Normalised questions that no fit may see: evaluation sets and official test sets."""
    keys = set().union(*evaluation_keys(real_folder()).values())
    return keys.union(*(load_set(name).keys for name in ("math_test", "gsm8k_test")))


def unread_keys(config: LadderConfig) -> set[str]:
    """Normalised questions that no SAE may be trained on: `held_out_keys` and what the probes are tested on."""
    held_out = held_out_keys()
    return held_out.union(*(split.test.keys for split in probe_splits(load_set, config, held_out).values()))


# Sets of the hub.

NO_ANSWER = ("proof", "notfound", "not found")
"""NuminaMath-1.5's words for a problem without a final answer that can be checked."""
SOLUTION = "r1_solution_1"
"""Which of DeepMath's three R1 solutions is read, what stands behind `</think>` of it (not stated in the paper; ours)."""
UNJUDGED = ("bad_problem", "give_up")
"""Values of PRM800K's finish_reason after which the labels judge no solution; such rows carry them as `flaw`."""


def published_rows(data: HubData) -> Iterator[Record]:
    """Rows streamed from the hub at the pinned revision, without remote code; or of a folder in the same format. Raises DataError
    for a set on the hub that is not pinned, and for one that cannot be read or is empty."""
    if data.revision is None and not Path(data.repository).is_dir():
        raise DataError(f"{data.repository}: not pinned yet; look up the commit and pass --revision {data.name}=HASH")
    where = (data.repository, data.split, data.configuration, data.data_file, data.revision)
    return (row.record or {} for row in rows(Source(*where, streaming=True, published=True)))


class Schema(NamedTuple):
    """How the rows of a published set are read."""

    names: dict[str, str]
    """As in `Rules`."""
    id: str = "id"
    """Field of the id; a row without it takes its number."""
    answered: bool = True
    """Whether every row must have an answer."""
    share: bool = False
    """The label is a share of correct attempts, and difficulty 1 minus it."""
    own: Callable[[Record], Record] = dict
    """What is read otherwise than it stands there; may add `flaw`."""


def _not_valid(row: Record) -> Record:
    """An answer 'proof' or 'notfound' becomes ''; `flaw` is 'problem' or 'solution' where the set calls it not valid."""
    judged = [part for part in ("problem", "solution") if row.get(f"{part}_is_valid") == "No"]
    answer = "" if str(row.get("answer")).strip().lower() in NO_ANSWER else row.get("answer")
    return {**row, "answer": answer, "flaw": judged[0] if judged else ""}


def _worked(row: Record) -> Record:
    """Worked lines, then '#### 18,000'."""
    work, mark, answer = str(row.get("answer") or "").rpartition("####")
    if not mark:
        raise BadRow("field 'answer' has no line '#### ...'; is this openai/gsm8k?")
    return {**row, "solution": work, "answer": answer.replace(",", "")}


def _lists(row: Record) -> Record:
    """Several final answers are joined by commas; a context stands before the question; the first solution is read."""
    answers = row.get("final_answer")
    if not isinstance(answers, list) or not answers:
        raise BadRow("field 'final_answer' is no list with an entry; is this OE_TO_maths_en_COMP?")
    asked = "\n".join(str(row[name]) for name in ("context", "question") if row.get(name))
    return {**row, "question": asked, "final_answer": ", ".join(map(str, answers)), "solution": (row.get("solution") or [""])[0]}


PROBLEM, QUESTION = ({"prompt": name, "answer": "answer", "solution": "solution"} for name in ("problem", "question"))
SCHEMAS = {
    "deepmath": Schema(QUESTION | {"answer": "final_answer", "solution": SOLUTION, "topic": "topic", "labels": "difficulty"},
                       own=lambda row: {**row, SOLUTION: str(row.get(SOLUTION) or "").rpartition("</think>")[2]}),
    "numinamath": Schema(PROBLEM | {"topic": "problem_type"}, id="", answered=False, own=_not_valid),
    "deepscaler": Schema(PROBLEM | {"labels": "pass_rate"}, answered=False, share=True),
    "aime24": Schema(PROBLEM),
    "amc23": Schema(QUESTION),
    "gsm8k": Schema(QUESTION, own=_worked),
    "math500": Schema(PROBLEM | {"topic": "subject", "labels": "level"}, id="unique_id"),
    "minerva": Schema(QUESTION),
    "olympiadbench": Schema(QUESTION | {"answer": "final_answer", "topic": "subfield"}, own=_lists),
}  # fmt: skip
"""Every set of `SETS` but PRM800K, by the fields of its card."""


def read_row(name: str, row: Record, index: int) -> Sample:
    """One row of the set `name`; its number is its id where it has none. Raises DataError with the row, the field and the fix."""
    try:
        if name == "prm800k":
            return _prm800k(row, index)
        schema = SCHEMAS[name]
        record = {key: value.strip() if isinstance(value, str) else value for key, value in schema.own(row).items()}
        allowed = (0.0, 1.0) if schema.share else None
        found = judge(Row("", record), index, Rules(schema.names, allowed, schema.share, need_answer=False))
        if schema.answered and not found.sample.answer:
            raise BadRow(f"field {schema.names['answer']!r} is missing or empty; fill it in or remove the row")
    except BadRow as problem:
        raise DataError(f"{name} row {index}: {problem}") from problem
    level = math.nan if found.label < 0 else found.label
    given = row.get(schema.id)
    own = {"id": f"{name}-{index if given in (None, '') else given}", "source": name, "flaw": record.get("flaw", "")}
    return dataclasses.replace(found.sample, difficulty=level, **own)


def _prm800k(row: Record, index: int) -> Sample:
    """One labelled solution: `steps` are the judged steps, '# Answer' cut from the last; `answer` is what the solution itself
    answers, taken from pre_generated_answer where labelling stopped before, so that an empty answer line gives no error away. The
    mean of `step_labels` is Table 3's label; the answer line has none. `flaw` is finish_reason unless that is 'solution'."""
    question, label = row.get("question"), row.get("label")
    if not isinstance(question, Mapping) or not isinstance(label, Mapping) or not question.get("problem"):
        raise BadRow("expected question with problem, and label; is this openai/prm800k's own schema?")
    judged = [judged_step(step) for step in label.get("steps") or []]
    reason = str(label.get("finish_reason") or "")
    if not judged and reason not in UNJUDGED:
        raise BadRow("no step was labelled; remove the row")
    parts = [text.rpartition("# Answer") if "# Answer" in text else (text, "", "") for text, _ in judged]
    steps = tuple(work.strip() for work, _, _ in parts if work.strip())
    answer = (parts[-1][2].strip() if parts else "") or str(question.get("pre_generated_answer") or "")
    ratings, flaw = tuple(rating for _, rating in judged), "" if reason == "solution" else reason
    return Sample(f"prm800k-{index}", str(question["problem"]).strip(), steps, answer, source="prm800k", flaw=flaw,
                  step_labels=ratings, solved=bool(parts))  # fmt: skip


def judged_step(step: Record) -> tuple[str, int]:
    """(text, rating) of the solution's own step: the chosen completion; else what the labeller wrote, which counts as +1; else,
    where labelling stopped at an error, the first completion, which is the model's own. A rating of null counts as 0."""
    chosen, human = step.get("chosen_completion"), step.get("human_completion")
    written = str((human.get("text") if isinstance(human, Mapping) else human) or "")
    if chosen is None and written:
        return written, 1
    completions, index = step.get("completions") or [], chosen or 0
    if not 0 <= index < len(completions):
        raise BadRow(f"chosen_completion {chosen} names none of {len(completions)} completions; the row is damaged")
    rating = completions[index].get("rating") or 0
    if rating not in (-1, 0, 1):
        raise BadRow(f"rating {rating!r} is none of -1, 0, +1")
    return str(completions[index].get("text") or ""), int(rating)


# The splits of a profile.


def data_set(config: PublishedConfig, name: str) -> HubData:
    """The set `name` as it is to be read: a folder of `config.folder`, or the hub at its pinned revision."""
    data = SETS[name]
    if config.folder is not None:
        return dataclasses.replace(data, repository=str(Path(config.folder) / data.repository), revision=None)
    return dataclasses.replace(data, revision=dict(config.revisions).get(name, data.revision))


def sets_to_read(profile: Profile) -> dict[str, str]:
    """Name of every set that is read -> what decides its rows: its revision, or the hash of its folder's contents. Those of the
    paper's Tables 2 and 3, deepscaler and prm800k, may be missing in a folder. Raises DataError that lists every other folder
    that is missing, or every set without a revision."""
    config = profile.published
    assert config is not None
    if unknown := [name for name, _ in config.revisions if name not in SETS]:
        raise DataError(f"--revision {unknown[0]}: no such set; choose from {', '.join(SETS)}")
    needed = ("deepmath", "numinamath", *profile.eval_sets)
    found = {name: data_set(config, name) for name in (*needed, "deepscaler", "prm800k")}
    if config.folder is None:
        if bare := [name for name in needed if found[name].revision is None]:
            raise DataError(f"not pinned yet: {', '.join(bare)}; pass --revision SET=HASH for each, or --data DIR")
        return {name: f"{data.repository}@{data.revision}" for name, data in found.items()}
    folders = {name: Path(data.repository) for name, data in found.items() if Path(data.repository).is_dir()}
    if absent := [SETS[name].repository for name in needed if name not in folders]:
        raise DataError(f"--data {config.folder}: no folder {', '.join(absent)}; put every set there as OWNER/NAME")
    return {name: _digest(folder) for name, folder in folders.items()}


def _digest(folder: Path) -> str:
    """Hash of names and contents of a folder's files, hidden ones left out."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    shown = {str(name): file_sha256(path) for name, path in files.items() if not any(p.startswith(".") for p in name.parts)}
    return content_hash(shown)


@dataclass
class PublishedRows:
    """The rows of one run, judged one after another; what is not taken is counted under its reason."""

    config: PublishedConfig
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: list[tuple[str, str]] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)
    """Normalised question -> the set that it was first seen in."""

    def read(self, name: str) -> Iterator[Sample]:
        """Every well-formed row of a set. Raises DataError at a malformed one unless they are to be skipped."""
        for index, row in enumerate(published_rows(data_set(self.config, name))):
            self.counts[name, "read"] += 1
            try:
                sample = read_row(name, row, index)
            except DataError as error:
                if not self.config.skip_bad_rows:
                    raise DataError(f"{error}; or pass --skip-bad-rows to leave such rows out and list them") from error
                self.counts[name, "malformed"] += 1
                self.bad.append((name, str(error)))
                continue
            yield sample

    def fresh(self, name: str, labelled: bool = False) -> Iterator[Sample]:
        """The rows that can be trained on and whose question was not seen before; `labelled`: of those with a difficulty."""
        for sample in self.read(name):
            key = normalise(sample.prompt)
            other = self.seen.get(key)
            if not sample.answer.strip():
                self.counts[name, "no answer to check"] += 1
            elif sample.flaw:
                self.counts[name, f"{sample.flaw} called not valid by the set"] += 1
            elif other is not None:
                self.counts[name, "question occurs twice" if other == name else f"question is in {other}"] += 1
            elif labelled and not math.isfinite(sample.difficulty):
                self.counts[name, "no difficulty label"] += 1
            else:
                self.seen[key] = name
                yield sample

    def judged(self, name: str) -> Iterator[Sample]:
        """The solutions with step labels; a question may have several."""
        for sample in self.read(name):
            if sample.flaw in UNJUDGED or not sample.step_labels:
                self.counts[name, f"step labels judge no solution ({sample.flaw or 'none'})"] += 1
            else:
                yield sample

    def drawn(self, name: str, samples: Iterator[Sample], count: int | None = None) -> list[Sample]:
        """The first `count` samples (None: all) in the order of their questions' hashes, ties by id."""
        found = heapq.nsmallest(count or 10**9, samples, key=lambda s: (hash_share(normalise(s.prompt)), s.id))
        taken = sum(n for (source, what), n in self.counts.items() if source == name and what != "read")
        self.counts[name, "beyond the number drawn"] += self.counts[name, "read"] - taken - len(found)
        return found


def draw_published(profile: Profile, rows: PublishedRows) -> dict[str, list[Sample]]:
    """All splits, under the names that a world's have: evaluation sets first, whose questions are kept out of what follows. The
    noisy pool is the target, with `labelled` and `test`, and NuminaMath-1.5, of which `filter_negatives` are further rows. Raises
    DataError for too few labels, and for a target or parent without a row."""
    config = rows.config
    splits: dict[str, list[Sample]] = {}
    for name in profile.eval_sets:
        splits[f"eval_{name}"] = list(rows.read(name))
        for sample in splits[f"eval_{name}"]:
            rows.seen.setdefault(normalise(sample.prompt), name)
    target = rows.drawn("deepmath", rows.fresh("deepmath"))
    known, count = [sample for sample in target if math.isfinite(sample.difficulty)], config.labelled_samples
    if len(known) <= count:
        raise DataError(f"deepmath: {len(known)} rows carry a difficulty, no more than labelled_samples={count}: label more")
    splits["labelled"], splits["test"] = known[:count], known[count : count + config.test_samples]
    apart = dict(rows.seen)  # what DeepScaleR may not repeat: NuminaMath-1.5, drawn from or not, is never tested with it
    parent = rows.drawn("numinamath", rows.fresh("numinamath"), config.parent_samples + config.parent_labels)
    labels = min(config.parent_labels, len(parent) // 2)
    if labels < 2:
        raise DataError("numinamath: no row can be trained on: each has no checkable answer, is called not valid, or is known")
    splits["filter_negatives"], splits["pool"] = parent[-labels:], target + parent[:-labels]
    rows.seen, cut = apart, config.contest_train_samples
    there = sets_to_read(profile)
    outside = list[Sample]()
    if "deepscaler" in there:
        outside = rows.drawn("deepscaler", rows.fresh("deepscaler", True), cut + config.contest_test_samples)
    cut = min(cut, len(outside) // 4)  # of a small set a quarter adapts
    splits["contest_train"], splits["contest_test"] = outside[:cut], outside[cut:]
    steps = rows.drawn("prm800k", rows.judged("prm800k"), config.step_labelled_samples) if "prm800k" in there else []
    return {name: samples for name, samples in (splits | {"step_labelled": steps}).items() if samples}


def published_stage(profile: Profile) -> Stage:
    """One `<split>.parquet` a split, counts.csv (source, what, n: every row is counted) and malformed.csv (source, problem).
    Raises DataError for missing sets, malformed rows, and what `draw_published` raises."""
    config = profile.published
    assert config is not None
    settings = {"config": {**to_dict(config), "folder": None}, "sets": sets_to_read(profile)}

    def compute(folder: Path) -> None:
        rows = PublishedRows(config)
        for name, samples in draw_published(profile, rows).items():
            write_samples(samples, folder / f"{name}.parquet")
            rows.counts[name, "kept"] += len(samples)
        counted = [(name, what, n) for (name, what), n in sorted(rows.counts.items()) if n]
        pd.DataFrame(counted, columns=["source", "what", "n"]).to_csv(folder / "counts.csv", index=False, lineterminator="\n")
        pd.DataFrame(rows.bad, columns=["source", "problem"]).to_csv(folder / "malformed.csv", index=False, lineterminator="\n")

    return get_or_compute(profile, "world", settings, compute)
