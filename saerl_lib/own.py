"""A plan of one's own data: read, represent, filter, score, plan, write (README, Your own data); and the command `encode`.

The same steps as every profile, with what the data allow: SAE features of a model, or those that `encode` stored; metadata and
TF-IDF for a first look without one; quality with ratings, difficulty with labels. Vocabulary and SVD see all rows, but no label,
and no row is scored by a model that saw its own label. Clusters are fitted on what is planned.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics import roc_auc_score

from saerl_lib.artifacts import MANIFEST, ArtifactError, code_hash, file_sha256, read_json, whole_folder
from saerl_lib.config import SMOLLM2, PlanConfig, PropertyConfig, content_hash, near, sub_seed, to_dict
from saerl_lib.data.answers import plain_form, unreadable
from saerl_lib.data.judge import MIN_ROWS, read, require
from saerl_lib.data.rows import Source
from saerl_lib.data.sample import DataError, Dataset, Dropped, Sample, number_of
from saerl_lib.encode.store import FeatureTable, Store, choose_retained, metadata_features
from saerl_lib.notebooks import UserError
from saerl_lib.plan.batch_plan import BatchPlan, rows_of
from saerl_lib.plan.orders import order_pool, projection_2d, prompt_tokens, random_order
from saerl_lib.plan.trainers import export_plan, open_export
from saerl_lib.properties.clusters import Clusters, pool_clusters
from saerl_lib.properties.probes import metric, tfidf_vectorizer
from saerl_lib.properties.quality import keep_top_k
from saerl_lib.properties.scorer import Columns, Rated, fit_rated, fit_scorer, whole_batches
from saerl_lib.report.statistics import Interval, bootstrap_interval
from saerl_lib.settings import NO_READER, Fields, OwnConfig, Reading, RowFields

if TYPE_CHECKING:
    from saerl_lib.encode.sae import SAEQuality  # `plan` without a model loads neither torch nor SAELens

RECORD = "run.json"
"""Written last; a folder that holds it is a finished plan."""
UNREAD = re.compile(r"\\!|[\s.,;]")
"""Signs of an answer that no checker minds."""


@dataclass(frozen=True)
class Planned:
    """A finished plan of one's own data, in its folder; a notebook shows it."""

    folder: Path
    read: int
    planned: int
    left_out: dict[str, int]
    """status -> rows; with `planned` they add up to `read`."""
    steps: int
    warnings: tuple[str, ...]
    """Titles of the report's warnings."""

    @classmethod
    def open(cls, folder: str | Path) -> Planned:
        """The plan that an earlier call left. Raises DataError when the folder holds none."""
        try:
            record = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
            values = {name: record[name] for name in ("read", "planned", "left_out", "steps")}
            return cls(Path(folder), **values, warnings=tuple(record["warnings"]))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder}: holds no finished plan ({RECORD}); plan again") from error

    @property
    def scores(self) -> pd.DataFrame:
        """One row a row that was read, with cluster, difficulty, quality, step and reason."""
        return pd.read_parquet(self.folder / "scores.parquet")

    @property
    def rows_left_out(self) -> pd.DataFrame:
        """where, id, status and reason of every row that is not planned."""
        return pd.read_csv(self.folder / "left_out.csv", dtype=str, keep_default_na=False)

    def why(self, name: str) -> str:
        """The decision path of one row, by its id or place ('line 7'), a line a decision; 'row-7' is also the seventh row of a
        file without ids. Raises DataError for another name."""
        padded = re.sub(r"\Arow-0*(\d{1,6})\Z", lambda number: f"row-{int(number[1]):06d}", name)
        for table in (self.scores, self.rows_left_out):
            found = table[table["id"].isin([name, padded]) | table["where"].isin([name, name.replace("line ", "row ")])]
            if len(found):
                row = found.iloc[0]
                return "\n  ".join([f"{row['id'] or 'no id'} ({row['where']})", *row["reason"].split("; ")])
        raise DataError(f"{name!r} is the id or place of no row of {self.folder}{near(name, self.scores['id'])}")

    def export(self, to: str, out: str | Path, rollouts: int = 8) -> list[str]:
        """Write the plan for a trainer (trl, verl, nemo-rl, prime-rl); returns the files. Raises what `export_plan` raises."""
        return export_plan(open_export(self.folder / "plan.parquet", rollouts_per_prompt=rollouts), to, Path(out))

    def _repr_html_(self) -> str:
        from saerl_lib.report.page import notebook_view

        return notebook_view(self)


def plan(
    data: str | Path, out: str | Path | None = None, *, labels: str | None = None, quality: str | None = None,
    reader: str | None = SMOLLM2, force: bool = False, **settings: Any,
) -> Planned:  # fmt: skip
    """Plan a file, folder, pattern or hub data set; `out` is the folder, by default `NAME_plan` here, which is replaced.

    `labels` and `quality` name fields, `reader` the model (None: a first look without one), `settings` any field of `OwnConfig`,
    or `prompt_field` and its neighbours. The same call again returns the plan that is there, and a killed one goes on. Raises
    what `plan_own_data` raises.
    """
    names = {f.name: settings.pop(f"{f.name}_field", None) for f in fields(RowFields)}
    config = OwnConfig(fields=Fields(labels=labels, quality=quality, **names), reader=reader or NO_READER, **settings)
    name = re.sub(r"[^\w.-]+", "_", Path(str(data)).name.split(".")[0]).strip("_") or "data"
    place = Path(out or f"{name}_plan")
    return plan_own_data(str(data), place, config, force, lambda text: print(text, file=sys.stderr), replace_other=out is None)


def load_data(source: str, config: OwnConfig) -> Dataset:
    """The usable rows of a source; those that no trainer could use as they are, are set aside (`set_aside`). Raises DataError as
    `data.judge.read` does, and OSError or ValueError for a policy whose tokenizer cannot be read."""
    place, labels = Source.parse(source, config.split), {"allowed": config.allowed_labels, "turned": config.turned}
    data = set_aside(read([place], config.fields, **labels, skip_bad_rows=config.skip_bad_rows), config)
    return require(data, max(MIN_ROWS, config.prompts_per_step))


def set_aside(data: Dataset, config: OwnConfig) -> Dataset:
    """The same rows, of which those with too long a prompt or an answer that the checker cannot read are set aside."""
    reasons = {row.id: (row.status, row.reason) for row in data.aside}
    left = [sample for sample in data.samples if sample.id not in reasons]
    notes = list(data.notes)
    if config.policy is not None:
        for sample, length in zip(left, prompt_tokens(config.policy, left), strict=True):
            if length > config.max_prompt_tokens:
                limit = f"--max-prompt-tokens {config.max_prompt_tokens:,}"
                reasons[sample.id] = ("too long", f"the prompt has {length:,} tokens, above {limit}")
    answers = {sample.id: sample.answer for sample in left if sample.id not in reasons and sample.answer}
    faults, unchecked = unreadable(answers.values())
    faulty = {name: faults[answer] for name, answer in answers.items() if answer in faults}
    if unchecked:
        notes.append(f"{number_of(len(unchecked), 'answer')} not checked: the checker crashed; kept, first {unchecked[0]!r}")
    if config.keep_unverifiable and faulty:
        told = next(iter(faulty.values()))
        notes.append(f"{number_of(len(faulty), 'answer')} kept that the checker cannot read: first {told}")
    elif faulty:
        reasons |= {name: ("unverifiable", f"{fault}; --keep-unverifiable plans it") for name, fault in faulty.items()}
    forms = ((name, given, plain_form(given)) for name, given in answers.items())
    if mended := [f"{name} ({given} as {form})" for name, given, form in forms if UNREAD.sub("", form) != UNREAD.sub("", given)]:
        told = f"such as {', '.join(mended[:5])}. A trainer must compare values here, as exports for TRL, verl and prime-rl do."
        notes.append(f"{number_of(len(mended), 'answer')} that our checker reads in a plainer form: {told}")
    aside = tuple(Dropped(where, sample.id, *reasons[sample.id])
                  for where, sample in zip(data.where, data.samples, strict=True) if sample.id in reasons)  # fmt: skip
    return replace(data, aside=aside, notes=tuple(notes))


def plan_own_data(
    source: str, out: Path, config: OwnConfig, force: bool = False, say: Callable[[str], None] = lambda text: None,
    features: Path | None = None, replace_other: bool = False,
) -> Planned:  # fmt: skip
    """Plan `source` into the folder `out`; `say` is told each step, `features` is a folder that `encode` left.

    `out` appears at the end: after an error there is none, and an earlier one is as it was. A plan of the same rows and settings
    is returned as it is, unless `force`; one of others is replaced with `force` or `replace_other` alone. What a model read is
    kept until the plan is done. Raises DataError for bad data or an `out` that is not free, and what the model's loaders raise.
    """
    from saerl_lib.report.page import write

    above = next(folder for folder in (out, *out.parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise DataError(f"--out {out}: {above} is no folder that can be written; name another place")
    if out.exists() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise DataError(f"{out} holds no earlier plan ({RECORD} is missing) and is not replaced; name another folder")
    data = load_data(source, config)
    say(f"{data.name}: {data.read} rows read, {int(data.plannable.sum())} usable")
    if not any(sample.answer for sample in data.samples):
        say("warning: no row has an answer, so no export for a trainer can be made; --answer-field names the field")
    given = repr((data.samples, data.labels.tolist(), data.quality.tolist(), data.dropped))
    key = content_hash([to_dict(config), given, code_hash("saerl_lib.own"), contents(features, config)])
    if (out / RECORD).is_file() and not force:
        if json.loads((out / RECORD).read_text(encoding="utf-8")).get("key") == key:
            say(f"{out} holds this plan")
            return Planned.open(out)
        if not replace_other:
            raise DataError(f"{out} exists and holds another plan; name another folder, or pass --force to replace it")
    store = out.parent / f".{out.name}.store"
    try:
        with whole_folder(out) as folder:
            if features is not None:
                found = represent_encoded(data, source, features, config)
            elif config.reader == NO_READER:
                found = represent_text(data.samples, config.seed)
            else:
                found = represent_model(data.samples, config, store)
            say(f"features: {found.name}, {found.phi.shape[1]} columns")
            say("filter, clusters, difficulty, plan ...")
            arranged = arrange(data, found, config)
            labels = arranged.difficulty.n_labels if arranged.difficulty else 0
            say(f"{number_of(arranged.clusters.k, 'cluster')}; difficulty from {number_of(labels, 'label')}")
            done = write(arranged, folder, out, key)
    except Exception:
        shutil.rmtree(store, ignore_errors=True)  # kept when the call is stopped from outside
        raise
    shutil.rmtree(store, ignore_errors=True)
    return done


# Features.

TEXT_COLUMNS = 64
"""Columns of the truncated SVD of each span's TF-IDF (ours)."""
SOLVED_SHARE = 0.5
"""Solutions are read when at least this share of the rows has one (ours)."""


@dataclass(frozen=True)
class Representation:
    """What is known about N samples before any label."""

    table: FeatureTable
    phi: NDArray[np.float32]
    """Columns that everything below reads, [N, D]; no NaN. A row without solution gets the mean one, where solutions are read."""
    lengths: NDArray[np.float64]
    """Length of prompt and solution, above 0, [N]."""
    name: str
    """What the features are, in words."""
    unit: str = "tokens"
    """Of the lengths: tokens where a model read the rows, else words."""
    truncated: int = 0
    """Samples whose end was cut."""
    latents: tuple[int, ...] = ()
    """Numbers of the S latents in the SAE; the mean over the prompt of each is in the first S columns of `table.z`."""
    sae: SAEQuality | None = None
    """The SAE's reconstruction of some rows' own tokens; None where it was not measured."""


def _represented(samples: Sequence[Sample], z: NDArray[np.float32], lengths: NDArray, name: str, **more: Any) -> Representation:
    """Features z [N, E] and metadata: with solutions when `SOLVED_SHARE` has one, else of prompts alone."""
    table = FeatureTable(tuple(s.id for s in samples), z, metadata_features(samples))
    phi = table.complete().phi if table.solved.mean() >= SOLVED_SHARE else table.prompt_phi
    return Representation(table, phi, lengths.astype(float), name, **more)


def represent_text(samples: Sequence[Sample], seed: int) -> Representation:
    """Metadata and TF-IDF (by truncated SVD) of N samples; no model. Deterministic for a seed."""
    unsolved = [not s.solved for s in samples]
    prompts = _svd([s.prompt for s in samples], sub_seed(seed, "prompt-svd"))
    solutions = np.full_like(prompts, np.nan)
    if not all(unsolved):
        solutions = _svd([s.solution for s in samples], sub_seed(seed, "solution-svd"))
        solutions[unsolved] = np.nan
    lengths = np.array([len(f"{s.prompt} {s.solution}".split()) for s in samples])
    return _represented(samples, np.hstack([prompts, solutions]), lengths, "metadata and TF-IDF", unit="words")


def _svd(texts: Sequence[str], seed: int) -> NDArray[np.float32]:
    """[N, TEXT_COLUMNS]; columns beyond the rank of a small pool are 0."""
    matrix = tfidf_vectorizer(texts).fit_transform(texts)
    out = np.zeros((len(texts), TEXT_COLUMNS), dtype=np.float32)
    width = min(TEXT_COLUMNS, *(size - 1 for size in matrix.shape))
    if width > 0:
        with np.errstate(invalid="ignore", divide="ignore"):  # equal texts have no variance to explain
            out[:, :width] = TruncatedSVD(width, random_state=seed).fit_transform(matrix)
    return out


def represent_model(samples: Sequence[Sample], config: OwnConfig, work: Path) -> Representation:
    """SAE features and metadata of N samples; `work` is a folder for the store of all latents. Raises OSError or ValueError for
    a model that cannot be read, ArtifactError for an SAE that does not fit it, FloatingPointError for non-finite activations."""
    from transformers.utils.logging import disable_progress_bar

    from saerl_lib.encode.models import open_reader
    from saerl_lib.encode.sae import measured
    from saerl_lib.encode.stages import encode

    disable_progress_bar()  # of loading weights; the rows have their own
    opened = cache(lambda: open_reader(config.spec))
    (done,) = encode({work: samples}, config.spec, opened=opened)
    origin = f"{Path(config.reader).name}, layer {config.spec.layer}"
    found = _of_store(samples, done.store, np.arange(len(samples)), config, origin)
    return replace(found, sae=measured(samples, opened()))


def contents(features: Path | None, config: OwnConfig) -> Any:
    """What decides the features beside the rows: what `encode` left, or what model and SAE hold. Raises ArtifactError where the
    model is not to be found."""
    if features is not None or config.reader == NO_READER:
        return features and (read_json(features / MANIFEST) or {}).get("shards")
    from saerl_lib.encode.models import identity

    try:
        return identity(config.spec)
    except ArtifactError as error:
        raise ArtifactError(f"{error}. `--reader none` (Python: reader=None) takes a first look without a model") from error


def represent_encoded(data: Dataset, source: str, folder: Path, config: OwnConfig) -> Representation:
    """SAE features and metadata of the rows of `source`, which `encode` read into `folder`, perhaps beside other files.

    Nothing is encoded again, wherever it was encoded. Raises ArtifactError when `encode` did not finish or a shard is damaged,
    and DataError when it read another file or left some of these rows out.
    """
    from saerl_lib.encode.stages import open_encoded

    store, manifest = open_encoded(folder)
    if Path(source).is_file() and file_sha256(Path(source)) not in {file["sha256"] for file in manifest["source"]}:
        names = ", ".join(file["name"] for file in manifest["source"])
        raise DataError(f"--features {folder}: `encode` read {names}, not this {Path(source).name}; encode it as it is now")
    place = rows_of(data.ids, store.ids)
    if absent := [name for name, row in zip(data.ids, place, strict=True) if row < 0]:
        missing = f"{len(absent)} of {len(data.samples)} rows are not there, first {absent[:3]}"
        raise DataError(f"--features {folder}: {missing}; encode this file with the same field options")
    return _of_store(data.samples, store, place, config, f"layer {manifest['decided_by']['layer']} from {folder.name}")


def _of_store(samples: Sequence[Sample], store: Store, rows: NDArray[np.int64], config: OwnConfig, origin: str) -> Representation:
    """The representation of samples that lie in `rows` of a store; the retained set is chosen from all of it."""
    retained = choose_retained(store, min(config.retained_latents, store.width))
    name, cut = f"{len(retained)} SAE latents of {origin}, and metadata", int(store.values("truncated")[rows].sum())
    return _represented(samples, store.select(retained)[rows], store.values("tokens")[rows], name, truncated=cut,
                        latents=tuple(map(int, retained)))  # fmt: skip


MIN_LABELS = 30
"""With fewer labels no difficulty is fitted (ours)."""
MIN_CLASS = 10
"""With fewer quality labels of either kind no filter is fitted (ours)."""
RESAMPLES = 200
"""Bootstrap resamples of an interval (ours)."""
TOLERANCE = 0.5
"""Partners of a tail swap differ by at most this many standard deviations of the ranking score (ours)."""


class Fit(NamedTuple):
    """How well out-of-fold scores agree with their labels."""

    n_labels: int
    skill: float
    """Spearman's rho of difficulty, ROC-AUC of quality."""
    by_length: float
    """The same of the length alone, in its better direction."""
    gain: Interval | None = None
    """Of skill minus by_length: 95 % bootstrap over labelled rows; of difficulty alone."""


@dataclass(frozen=True)
class Arranged:
    """N usable rows, what was read from them, and their plan: all that tables and report show."""

    config: OwnConfig
    data: Dataset
    found: Representation
    clusters: Clusters
    points: np.ndarray
    """First two principal components of the standardised, clipped features, [N, 2]."""
    scores: pd.DataFrame
    """One row a row: cluster, distance, raw, difficulty with low and high (r of equation 10 and nominal 95 %, cut to the labels'
    range), quality, and ranking, what orders rows within their cluster; a score that was not fitted is NaN, larger is harder or
    more like sound."""
    difficulty: Fit | None
    quality: Fit | None
    ranked_by: str
    """difficulty, or its stand-in without labels: length or random."""
    plan: BatchPlan
    dropped: tuple[Dropped, ...]
    """Samples that are not planned: set aside, filtered, then those that fill no batch, each in the order of the source."""


def properties_of(n: int, config: OwnConfig) -> PropertyConfig:
    """The settings of a pool of n samples: 10 clusters (paper), fewer when each would hold less than two batches."""
    k = config.clusters or max(1, min(10, n // max(2 * config.prompts_per_step, 10)))
    if k > n:
        raise ValueError(f"--clusters {k} exceeds the {n} usable rows: ask for fewer")
    smallest = min(config.prompts_per_step, max(1, n // (2 * k)))
    return PropertyConfig(clusters=k, smallest_cluster=smallest, cluster_fit_rows=max(10_000, k))


def fit_quality(found: Representation, labels: np.ndarray, seed: int) -> tuple[np.ndarray, Fit | None]:
    """Quality [N] from labels [N] in {0, 1} (NaN: unknown): NaN and None with fewer than `MIN_CLASS` of either kind."""
    known = np.flatnonzero(np.isfinite(labels))
    sound = labels[known] == 1
    if min(sound.sum(), (~sound).sum()) < MIN_CLASS:
        return np.full(len(labels), np.nan), None
    classifier, own = fit_rated(Rated([found.table.ids[i] for i in known], found.phi[known], sound), sub_seed(seed, "quality"))
    score = classifier.score(found.phi)
    score[known] = own
    by_length = float(roc_auc_score(sound, found.lengths[known]))
    return score, Fit(len(known), float(roc_auc_score(sound, own)), max(by_length, 1 - by_length))


def fit_difficulty(
    found: Representation, labels: np.ndarray, clusters: Clusters, settings: PropertyConfig, seed: int
) -> tuple[pd.DataFrame, Fit | None]:
    """`Scorer.score` of N rows, with difficulty from labels [N] (NaN: unknown); None when few (`MIN_LABELS`) or equal."""
    known, pool = np.flatnonzero(np.isfinite(labels)), Columns(found.table.ids, found.phi, found.phi)
    if len(known) < MIN_LABELS or np.ptp(labels[known]) == 0:
        return fit_scorer(clusters, None, None, None, settings, seed).score(pool), None
    labelled = Columns([pool.ids[i] for i in known], found.phi[known], found.phi[known])
    scores = fit_scorer(clusters, labelled, labels[known], None, settings, seed).score(pool)
    compared = (scores["raw"].to_numpy()[known], found.lengths[known])

    def rho(rows: np.ndarray | slice) -> tuple[float, float]:
        own, by_length = (metric("rank", x[rows], labels[known][rows]) for x in compared)
        return own, abs(by_length)

    gain = bootstrap_interval(lambda rows: float(np.subtract(*rho(rows))), len(known), RESAMPLES, sub_seed(seed, "gain"))
    return scores, Fit(len(known), *rho(slice(None)), gain)


def arrange(data: Dataset, found: Representation, config: OwnConfig) -> Arranged:
    """Filter by quality, cut to whole batches, cluster what is left, fit difficulty and plan, in the order of every profile.

    Rows that were set aside take part in the fits by labels and are never planned. Raises ValueError when a filter is asked for
    that could not be fitted or that leaves less than a batch.
    """
    ids, b, seed, may = data.ids, config.prompts_per_step, config.seed, data.plannable
    quality, quality_fit = fit_quality(found, data.quality, seed)
    kept = may if config.keep is None else _filtered(ids, quality, may, config)
    rows = np.flatnonzero(kept)
    full = whole_batches([data.samples[i] for i in rows], b)
    planned = rows[full]
    settings = properties_of(len(planned), config)
    clusters = pool_clusters(found.phi[planned], settings, seed)
    scores, fit = fit_difficulty(found, data.labels, clusters, settings, seed)
    scores, ranked_by = scores.assign(quality=quality), "difficulty" if fit else config.without_labels
    half, ends = scores.pop("half_width"), (np.nanmin(data.labels), np.nanmax(data.labels)) if fit else (None, None)
    for name, shift in (("difficulty", 0.0), ("low", -half), ("high", half)):
        scores[name] = (scores["ranking"] + shift).clip(*ends)
    if not fit:
        order = np.argsort(random_order(ids, sub_seed(seed, "within")))
        scores["ranking"] = scores["raw"] = found.lengths if ranked_by == "length" else order.astype(float)
    pool = scores.assign(length=found.lengths).iloc[planned]
    tolerance = TOLERANCE * float(pool["ranking"].std(ddof=0))
    plan = order_pool(pool, PlanConfig(b, config.swapped_per_batch, difficulty_tolerance=tolerance, rest="pool"), "saerl")
    low = {i: ("filtered", f"quality score {quality[i]:.3f} is not among the best {config.keep:.0%}")
           for i in np.flatnonzero(may & ~kept)}  # fmt: skip
    count = f"{len(rows):,} rows to plan are {len(planned) // b:,} batches of {b} and {len(rows) - len(planned)} more"
    over = f"{count}, drawn by a hash of the question; nothing is wrong with this row"
    reasons = low | {i: ("left over", over) for i in rows[~full]}
    dropped = (*data.aside, *(Dropped(data.where[i], ids[i], *reason) for i, reason in reasons.items()))
    with np.errstate(invalid="ignore"):  # equal rows have no variance to explain
        points = projection_2d(clusters.standardise(found.phi))
    return Arranged(config, data, found, clusters, points, scores, fit, quality_fit, ranked_by, plan, dropped)


def _filtered(ids: Sequence[str], quality: np.ndarray, may: np.ndarray, config: OwnConfig) -> np.ndarray:
    """Mask bool [N] of the rows that may be planned and that the quality filter keeps, at least a batch."""
    if np.isnan(quality).all():
        raise ValueError("--keep needs at least 10 rows labelled true and 10 labelled false: label more, or leave --keep out")
    rows, kept = np.flatnonzero(may), np.zeros(len(ids), dtype=bool)
    kept[rows] = keep_top_k(quality[rows], [ids[i] for i in rows], max(1, round((config.keep or 1) * len(rows))))
    if kept.sum() < config.prompts_per_step:
        few = f"less than a batch of {config.prompts_per_step}: raise --keep"
        raise ValueError(f"the filter keeps {kept.sum()} of {len(rows)} rows, {few}")
    return kept


def run_encode(data: Sequence[str], out: Path, workers: int | None, ray: str | None, reading: Reading) -> int:
    """`encode`: the latents of data files in `out`, with a bar; the last line is one JSON object.

    Raises UserError without a model, DataError for bad data, and what `encode` raises.
    """
    from saerl_lib.encode.stages import encode

    if reading.reader == NO_READER:
        raise UserError("encode reads with a model: give --reader MODEL, --layer N and --sae SAE")
    started = time.monotonic()
    found, files = read(data, reading.fields, skip_bad_rows=reading.skip_bad_rows), [Path(name) for name in data]
    counts = {"read": found.read, "left_out": dict(sorted(Counter(d.status for d in found.dropped).items()))}
    source = [{"name": f.name, "sha256": file_sha256(f) if f.is_file() else None} for f in files]
    about = {"source": source, **counts, "notes": list(found.notes)}
    (done,) = encode({out: found.samples}, reading.spec, workers=workers, ray=ray, about=about)
    table = pd.DataFrame(found.dropped, columns=["where", "id", "status", "reason"])
    table.to_csv(out / "not_encoded.csv", index=False, lineterminator="\n")
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({**counts, "parts": done.parts, "reused": done.reused, **done.totals, "seconds": seconds}))
    return 0


def run_plan(data: str, out: Path, force: bool, features: Path | None, settings: OwnConfig) -> int:
    """`plan`: plan, tell each step and the warnings; the last line is one JSON object. Raises what `plan_own_data` raises."""
    started = time.monotonic()
    if features is not None and (settings.reader not in (NO_READER, SMOLLM2) or settings.layer or settings.sae):
        raise UserError("--features takes the place of --reader, --layer and --sae; leave them out")
    done = plan_own_data(data, out, settings, force, lambda text: print(text, flush=True), features)
    for title in done.warnings:
        print(f"warning: {title}")
    for status, count in done.left_out.items():
        print(f"not planned, {status}: {count} (left_out.csv)")
    print(f"{done.planned} of {done.read} rows in {number_of(done.steps, 'step')}; open {out / 'report.html'}")
    counts = {name: getattr(done, name) for name in ("read", "planned", "left_out", "steps")}
    print(json.dumps({**counts, "seconds": round(time.monotonic() - started, 1)}))
    return 0
