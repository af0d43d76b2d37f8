"""A plan of one's own data: `load_data` judges the rows, `plan_own_data` writes plan, scores and report (README, Your own data).

Settings of a plan of one's own data; a bad combination raises before a file is read.

Features of one's own rows: metadata and TF-IDF for a first look, SAE features of a model, or those that `encode` stored.

All give a FeatureTable, so that what follows is the same. Vocabulary and SVD see all rows, but no label.

Clusters, calibrated difficulty and the quality score of one's own rows (paper, sections 3.2, 3.3 and B.4).

No row is scored by a model that saw its own label: labelled rows take out-of-fold scores, the others those of the final model.

One's own rows from features to a plan: fit, filter, cut to whole batches, plan; a row ends in the plan or among the others.

From a file of problems to a plan with its report: read, validate, represent, arrange, write.

An example file of problems, written from the embedded world: what a user's own file may look like.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics import roc_auc_score

from saerl_lib.artifacts import file_sha256, write_json
from saerl_lib.config import PlanConfig, PropertyConfig, content_hash, sub_seed, to_dict
from saerl_lib.data import rows
from saerl_lib.data.rows import SHARE_FIELD, Fields
from saerl_lib.data.sample import SAMPLES, DataError, Dataset, Dropped, Sample, hash_share, normalise, write_samples
from saerl_lib.encode.models import open_reader
from saerl_lib.encode.parts import encode, open_encoded
from saerl_lib.encode.pool import Encoder, metadata_features
from saerl_lib.encode.sae import MEASURED_SAMPLES, SAEQuality, measured
from saerl_lib.encode.store import FeatureTable, Store, choose_retained
from saerl_lib.plan.batch_plan import BatchPlan
from saerl_lib.plan.mixing import batch_diversity, projection_2d
from saerl_lib.plan.orders import build_plan, random_order
from saerl_lib.properties.clusters import Assignment, Clusters, pool_clusters
from saerl_lib.properties.probes import correlation, fit_tfidf
from saerl_lib.properties.quality import keep_top_k
from saerl_lib.properties.scorer import Columns, Rated, fit_rated, fit_scorer
from saerl_lib.report.statistics import Interval, bootstrap_interval

if TYPE_CHECKING:
    from saerl_lib.encode.models import ReaderSpec

NO_ENCODER = "none"
"""Value of `encoder` for metadata and TF-IDF features, without a model."""
PAPER_SWAP = 16
"""One of so many samples of a batch is exchanged (paper: 8 of 128)."""


@dataclass(frozen=True)
class OwnConfig:
    """Everything that decides a plan beside the data."""

    fields: Fields = field(default_factory=Fields)
    split: str = "train"
    """Split of a data set named on the Hugging Face Hub."""
    encoder: str = NO_ENCODER
    """'none', or a model in Hugging Face format: folder or hub name."""
    layer: int | None = None
    """Block whose residual stream the SAE reads; 1 is the first."""
    sae: str | None = None
    """FOLDER saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID."""
    retained_latents: int = 240
    """|F|; all latents when the SAE has fewer (paper, section B.1, inferred)."""
    max_tokens: int | None = None
    """Longer samples are cut at the end and counted; None: the positions that the model has."""
    tokens_per_batch: int = 8192
    """Padded tokens of one encoding batch; bounds the memory."""
    device: str = "cpu"
    """Where the model and the SAE run: cpu, cuda or cuda:N; last digits differ between devices."""
    bf16: bool = False
    """Run the model in bfloat16; the SAE stays in float32."""
    label_range: tuple[float, float] | None = None
    """Smallest and largest allowed label, in label units; None: any finite number (0 to 1 for `pass_rate`)."""
    larger_is_easier: bool = False
    """Turns the labels round; `pass_rate` is always turned."""
    clusters: int | None = None
    """K; None: 10 (paper), fewer when a cluster would hold less than two batches."""
    prompts_per_step: int = 32
    """b (paper: 128)."""
    without_labels: str = "length"
    """Order within a cluster when there are no labels: length (short first, a stand-in) or random."""
    keep: float | None = None
    """Share of rows kept by the quality filter, in (0, 1]; None: nothing is filtered."""
    skip_bad_rows: bool = False
    """Leave malformed rows out and list them, instead of stopping."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError with the option and the fix."""
        if self.encoder == NO_ENCODER:
            if self.layer is not None or self.sae is not None:
                raise ValueError("--layer and --sae need a model: pass --encoder FOLDER or leave both out")
            if self.device != "cpu" or self.bf16:
                raise ValueError("--device and --bf16 need a model: pass --encoder FOLDER or leave both out")
        elif self.layer is None or self.sae is None:
            raise ValueError(f"--encoder {self.encoder} needs --layer and --sae: name the layer that the SAE was trained on, "
                             "and the SAE")  # fmt: skip
        elif Path(self.encoder).exists() and not (Path(self.encoder) / "config.json").is_file():
            raise ValueError(f"--encoder {self.encoder}: no config.json there; name a folder in Hugging Face format")
        for name, least in (("prompts_per_step", 2), ("retained_latents", 1), ("tokens_per_batch", 1), ("clusters", 1),
                            ("max_tokens", 2)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if self.label_range is not None and not self.label_range[0] < self.label_range[1]:
            low, high = self.label_range
            raise ValueError(f"--label-range {low:g} {high:g}: the first number must be the smaller one")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"--keep {self.keep} must lie above 0 and at most at 1: it is the share of rows that is kept")
        if self.keep is not None and self.fields.quality is None:
            raise ValueError("--keep needs quality labels: name their field with --quality")
        if self.without_labels not in ("length", "random"):
            raise ValueError(f"without_labels={self.without_labels!r}: choose length or random")

    @property
    def reader(self) -> ReaderSpec:
        """The model and SAE that read the rows."""
        from saerl_lib.encode.models import ReaderSpec

        assert self.layer is not None and self.sae is not None  # __post_init__ checks it
        return ReaderSpec(
            self.encoder, self.layer, self.sae, self.max_tokens, self.tokens_per_batch, device=self.device, bf16=self.bf16
        )

    @property
    def swapped_per_batch(self) -> int:
        """h, samples that a batch exchanges with its partner."""
        return max(1, self.prompts_per_step // PAPER_SWAP)

    @property
    def turned(self) -> bool:
        """Whether a larger label means easier, so that labels are turned round."""
        return self.fields.labels is not None and (self.larger_is_easier or self.fields.labels == SHARE_FIELD)

    @property
    def allowed_labels(self) -> tuple[float, float] | None:
        """Range that labels must lie in, or None."""
        if self.label_range is None and self.fields.labels == SHARE_FIELD:
            return (0.0, 1.0)
        return self.label_range


RECORD = "run.json"
"""Written last; a folder that holds it is a finished plan."""


@dataclass(frozen=True)
class Outcome:
    """What was written."""

    folder: Path
    read: int
    """Rows of the source."""
    planned: int
    """Rows in the plan."""
    left_out: dict[str, int]
    """status -> rows that are not in the plan; with `planned` they add up to `read`."""
    steps: int
    warnings: tuple[str, ...]
    """Titles of the report's warnings."""


def load_data(source: str, config: OwnConfig) -> Dataset:
    """The usable rows of a file or hub data set. Raises DataError as `data.rows.read` does."""
    return rows.read(
        rows.Source.parse(source, config.split), config.fields, allowed=config.allowed_labels, turned=config.turned,
        skip_bad_rows=config.skip_bad_rows, batch=config.prompts_per_step,
    )  # fmt: skip


def plan_own_data(
    source: str,
    out: Path,
    config: OwnConfig,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
    read: Callable[[Dataset], Representation] | None = None,
) -> Outcome:
    """Plan `source` into the new folder `out`; `say` is told each step, `read` gives features that exist already.

    `out` holds plan.parquet, samples.parquet (the usable rows, for `export` and `train`), scores.csv, clusters.csv,
    not_planned.csv, features.safetensors, report.html and run.json. It is written beside its place and renamed at the end:
    after an error there is no folder, and an earlier one is as it was.
    Raises DataError for bad data or an `out` that exists (unless `force`, which replaces an earlier plan), and what the
    model's loaders raise.
    """
    _require_place(out, force)
    data = load_data(source, config)
    say(f"{data.name}: {data.read} rows read, {len(data.samples)} usable")
    with _new_folder(out) as folder:
        found = read(data) if read else _represent(data, folder, config)
        say(f"features: {found.name}, {found.phi.shape[1]} columns")
        arranged = arrange(data, found, config)
        labels = arranged.difficulty.n_labels if arranged.difficulty else 0
        say(f"{arranged.grouping.clusters.k} clusters; difficulty from {labels} labels")
        return _write(arranged, folder, out)


def _represent(data: Dataset, folder: Path, config: OwnConfig) -> Representation:
    if config.encoder == NO_ENCODER:
        return represent_text(data.samples, config.seed)
    found = represent_model(data.samples, config, folder / "store")
    shutil.rmtree(folder / "store")
    return found


def _write(arranged: Arranged, folder: Path, out: Path) -> Outcome:
    """Write features, plan, tables, report and record of `out` into `folder`. Raises RuntimeError when a row was lost."""
    from saerl_lib.encode.store import save_features
    from saerl_lib.plan.batch_plan import plan_hash, write_plan
    from saerl_lib.report.page import caveats, cluster_table, not_planned_table, page, score_table

    data, plan, config = arranged.data, arranged.plan, to_dict(arranged.config)
    scores, rest, listed = score_table(arranged), not_planned_table(arranged), caveats(arranged)
    cards = cluster_table(arranged, scores)
    if len(plan.ids) + len(rest) != data.read:
        raise RuntimeError(f"{data.read} rows were read, {len(plan.ids)} planned and {len(rest)} listed: a row was lost")
    save_features(arranged.found.table, folder / "features.safetensors")
    write_plan(plan, folder / "plan.parquet")
    write_samples(data.samples, folder / SAMPLES)
    for name, table in (("scores", scores), ("clusters", cards), ("not_planned", rest)):
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    (folder / "report.html").write_text(page(arranged, listed, scores, cards, rest), encoding="utf-8")
    outcome = Outcome(out, data.read, len(plan.ids), dict(sorted(Counter(rest["status"]).items())), plan.steps,
                      tuple(c.title for c in listed if c.kind == "warning"))  # fmt: skip
    record = {**asdict(outcome), "folder": out.name, "source": data.name, "settings": config,
              "settings_hash": content_hash(config), "plan_hash": plan_hash(plan),
              "caveats": [asdict(c) for c in listed]}  # fmt: skip
    write_json(folder / RECORD, json.loads(json.dumps(record)))
    return outcome


def _require_place(out: Path, force: bool) -> None:
    """Raises DataError when `out` cannot become a new plan, before anything is read."""
    if not out.name:
        raise DataError(f"--out {out}: name a folder that does not exist yet")
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise DataError(f"--out {out}: {above} is no folder that can be written; name another place")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise DataError(f"{out} exists; name another folder, or pass --force to replace an earlier plan")
    if not (out / RECORD).is_file():
        raise DataError(f"{out} holds no earlier plan ({RECORD} is missing) and is not replaced; name another folder")


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, an earlier `out` going last; else no trace stays."""
    partial, old = (out.with_name(f".{out.name}.{state}") for state in ("partial", "old"))
    missing = [folder for folder in out.parents if not folder.exists()]
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        try:
            partial.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in missing:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                folder.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


TEXT_COLUMNS = 64
"""Columns of the truncated SVD of each span's TF-IDF (ours)."""
TOKENS = "tokens"
"""Unit of the lengths where a model read the rows."""
SOLVED_SHARE = 0.5
"""Solutions are read when at least this share of the rows has one (ours)."""


@dataclass(frozen=True)
class Representation:
    """What is known about N samples before any label."""

    table: FeatureTable
    phi: NDArray[np.float32]
    """Columns that everything below reads, [N, D]; no NaN."""
    lengths: NDArray[np.float64]
    """Length of prompt and solution, above 0, [N]."""
    unit: str
    """Of the lengths: words or tokens."""
    name: str
    """What the features are, in words."""
    with_solution: bool
    """Whether phi holds the solution."""
    truncated: int = 0
    """Samples whose end was cut."""
    sae: SAEQuality | None = None
    """The SAE's reconstruction of some rows' own tokens; None where it was not measured."""

    @property
    def by_model(self) -> bool:
        """Whether a model read the rows."""
        return self.unit == TOKENS


def represent_text(samples: Sequence[Sample], seed: int) -> Representation:
    """Metadata and TF-IDF (by truncated SVD) of N samples; no model. Deterministic for a seed."""
    z = [_svd([s.prompt for s in samples], sub_seed(seed, "prompt-svd"))]
    solved = np.array([s.solved for s in samples])
    z.append(np.full_like(z[0], np.nan))
    if solved.any():
        block = _svd([s.solution if s.solved else "" for s in samples], sub_seed(seed, "solution-svd"))
        z[1][solved] = block[solved]
    table = FeatureTable(tuple(s.id for s in samples), np.concatenate(z, axis=1), metadata_features(samples))
    lengths = np.array([len(f"{s.prompt} {s.solution}".split()) for s in samples], dtype=float)
    return finish(table, lengths, "words", "metadata and TF-IDF")


def represent_model(samples: Sequence[Sample], config: OwnConfig, work: Path) -> Representation:
    """SAE features and metadata of N samples; `work` is an empty folder for the store of all latents.

    Raises OSError or ValueError for a model that cannot be read, SAEGateError for an SAE that does not fit it, and
    FloatingPointError for non-finite activations.
    """

    @cache
    def opened() -> Encoder:
        return open_reader(config.reader, [s.prompt for s in samples])

    store = encode(samples, config.reader, work, opened=opened).store
    found = _of_store(samples, store, np.arange(len(samples)), config, f"{Path(config.encoder).name}, layer {config.layer}")
    return replace(found, sae=measured(samples[:MEASURED_SAMPLES], opened(), config.reader.sae))


def represent_encoded(data: Dataset, source: str, folder: Path, config: OwnConfig) -> Representation:
    """SAE features and metadata of the rows of `source`, which `encode` read into `folder`, perhaps beside other files.

    Nothing is encoded again, wherever it was encoded. Raises ArtifactError when `encode` did not finish or a shard is damaged,
    and DataError when it read another file or left some of these rows out.
    """
    store, manifest = open_encoded(folder)
    if Path(source).is_file() and file_sha256(Path(source)) not in {file["sha256"] for file in manifest["source"]}:
        names = ", ".join(file["name"] for file in manifest["source"])
        raise DataError(f"--features {folder}: `encode` read {names}, not this {Path(source).name}; encode it as it is now")
    place = {name: row for row, name in enumerate(store.ids)}
    absent = [name for name in data.ids if name not in place]
    if absent:
        raise DataError(
            f"--features {folder}: {len(absent)} of {len(data.samples)} rows are not there, first {absent[:3]}; encode this file "
            "with the same field options"
        )
    rows = np.array([place[name] for name in data.ids])
    return _of_store(data.samples, store, rows, config, f"layer {manifest['decided_by']['layer']} from {folder.name}")


def _of_store(
    samples: Sequence[Sample], store: Store, rows: NDArray[np.int64], config: OwnConfig, origin: str
) -> Representation:
    """The representation of samples that lie in `rows` of a store; the retained set is chosen from all of it."""
    retained = choose_retained(store, min(config.retained_latents, store.width))
    table = FeatureTable(tuple(s.id for s in samples), store.select(retained)[rows], metadata_features(samples))
    tokens, cut = store.values("tokens")[rows], store.values("truncated")[rows]
    name = f"{len(retained)} SAE latents of {origin}, and metadata"
    return finish(table, tokens.astype(float), TOKENS, name, int(cut.sum()))


def finish(table: FeatureTable, lengths: NDArray[np.float64], unit: str, name: str, truncated: int = 0) -> Representation:
    """The representation of a feature table: with solutions when at least half of the rows have one, else prompts alone.

    A row without solution gets the mean one in the first case (`FeatureTable.complete`).
    """
    with_solution = bool(table.solved.mean() >= SOLVED_SHARE)
    phi = table.complete().phi if with_solution else table.prompt_phi
    return Representation(table, phi, lengths, unit, name, with_solution, truncated)


def _svd(texts: Sequence[str], seed: int) -> NDArray[np.float32]:
    """[N, TEXT_COLUMNS]; columns beyond the rank of a small pool are 0."""
    matrix = fit_tfidf(texts).transform(texts)
    out = np.zeros((len(texts), TEXT_COLUMNS), dtype=np.float32)
    width = min(TEXT_COLUMNS, *(size - 1 for size in matrix.shape))
    if width > 0:
        with np.errstate(invalid="ignore"):  # equal texts have no variance to explain
            out[:, :width] = TruncatedSVD(width, random_state=seed).fit_transform(matrix)
    return out


MIN_LABELS = 30
"""With fewer labels no difficulty is fitted (ours)."""
MIN_CLASS = 10
"""With fewer quality labels of either kind no filter is fitted (ours)."""
RESAMPLES = 200
"""Bootstrap resamples of an interval (ours)."""


@dataclass(frozen=True)
class Grouping:
    """Clusters of N samples and their map."""

    clusters: Clusters
    assignment: Assignment
    points: np.ndarray
    """First two principal components of the standardised, clipped features, [N, 2]."""


@dataclass(frozen=True)
class Difficulty:
    """Difficulty of N samples in label units, larger is harder, float [N] each."""

    raw: np.ndarray
    ranking: np.ndarray
    """r of equation 10."""
    low: np.ndarray
    """Lower end of the nominal 95 % interval; -inf when there are too few labels."""
    high: np.ndarray
    n_labels: int
    spearman: float
    """Of out-of-fold predictions with the labels."""
    spearman_length: float
    """|rho| of the length with the labels."""
    gain: Interval
    """Of spearman minus spearman_length: 95 % bootstrap over labelled rows."""


@dataclass(frozen=True)
class Quality:
    """Quality score of N samples."""

    score: np.ndarray
    """In [0, 1], larger is more like the rows labelled true, [N]."""
    n_labels: int
    roc_auc: float
    """Of out-of-fold scores."""
    roc_auc_length: float
    """Of the length alone, in its better direction."""


def properties_of(n: int, config: OwnConfig) -> PropertyConfig:
    """The settings of a pool of n samples: 10 clusters (paper), fewer when each would hold less than two batches."""
    k = config.clusters or max(1, min(10, n // max(2 * config.prompts_per_step, 10)))
    if k > n:
        raise ValueError(f"--clusters {k} exceeds the {n} usable rows: ask for fewer")
    smallest = min(config.prompts_per_step, max(1, n // (2 * k)))
    return PropertyConfig(clusters=k, smallest_cluster=smallest, bootstrap_samples=RESAMPLES, cluster_fit_rows=max(10_000, k))


def group(found: Representation, settings: PropertyConfig, seed: int) -> Grouping:
    """Fit clusters on phi and lay the map."""
    clusters = pool_clusters(found.phi, settings, seed)
    with np.errstate(invalid="ignore"):  # equal rows have no variance to explain
        points = projection_2d(clusters.standardise(found.phi))
    return Grouping(clusters, clusters.assign(found.phi), points)


def fit_scores(
    found: Representation, grouping: Grouping, labels: np.ndarray, settings: PropertyConfig, seed: int
) -> Difficulty | None:
    """Difficulty from labels [N] (NaN: unknown), or None with fewer than `MIN_LABELS` or with equal labels."""
    known = np.flatnonzero(np.isfinite(labels))
    if len(known) < MIN_LABELS or np.ptp(labels[known]) == 0:
        return None
    pool = Columns(found.table.ids, found.phi, found.phi)
    labelled = Columns([pool.ids[i] for i in known], found.phi[known], found.phi[known])
    scores = fit_scorer(pool, labelled, labels[known], None, settings, seed, grouping.clusters).score(pool)
    raw, ranking, half = (scores[name].to_numpy() for name in ("raw", "ranking", "half_width"))
    read, length = raw[known], found.lengths[known]

    def gain(rows: np.ndarray) -> float:
        return correlation("spearman", read[rows], labels[known][rows]) - abs(
            correlation("spearman", length[rows], labels[known][rows])
        )

    return Difficulty(
        raw, ranking, ranking - half, ranking + half, len(known),
        correlation("spearman", read, labels[known]), abs(correlation("spearman", length, labels[known])),
        bootstrap_interval(gain, len(known), settings.bootstrap_samples, sub_seed(seed, "gain")),
    )  # fmt: skip


def fit_quality(found: Representation, quality: np.ndarray, settings: PropertyConfig, seed: int) -> Quality | None:
    """Quality scores from labels [N] in {0, 1} (NaN: unknown), or None with fewer than `MIN_CLASS` of either kind."""
    known = np.flatnonzero(np.isfinite(quality))
    sound = quality[known] == 1
    if min(sound.sum(), (~sound).sum()) < MIN_CLASS:
        return None
    rated = Rated([found.table.ids[i] for i in known], found.phi[known], sound)
    classifier, own = fit_rated(rated, sub_seed(seed, "quality"))
    score = classifier.score(found.phi)
    score[known] = own
    by_length = float(roc_auc_score(sound, found.lengths[known]))
    return Quality(score, len(known), float(roc_auc_score(sound, score[known])), max(by_length, 1 - by_length))


TOLERANCE = 0.5
"""Partners of a tail swap differ by at most this many standard deviations of the ranking score (ours)."""


@dataclass(frozen=True)
class Arranged:
    """N usable rows, what was read from them, and their plan: all that tables and report show."""

    config: OwnConfig
    data: Dataset
    found: Representation
    grouping: Grouping
    difficulty: Difficulty | None
    quality: Quality | None
    ranking: np.ndarray
    """What orders a row within its cluster, larger comes later, [N]."""
    ranked_by: str
    """difficulty, or its stand-in without labels: length or random."""
    plan: BatchPlan
    dropped: tuple[Dropped, ...]
    """Filtered rows, then those that fill no batch, each in the order of the source."""
    diversity: float
    """Mean distance to the 5 nearest neighbours of a batch on the map."""
    diversity_random: float
    """The same for a random order of the planned samples."""


def whole_batches(ids: Sequence[str], keys: Sequence[str], prompts_per_step: int) -> np.ndarray:
    """Mask bool [N] of the rows that fill whole batches: by the hash of the question, so neither easy nor late rows are favoured.

    >>> int(whole_batches(["a", "b", "c"], ["1", "2", "3"], 2).sum())
    2
    """
    order = np.lexsort((np.asarray(ids, dtype=str), np.array([hash_share(key) for key in keys])))
    mask = np.zeros(len(ids), dtype=bool)
    mask[order[: len(ids) - len(ids) % prompts_per_step]] = True
    return mask


def arrange(data: Dataset, found: Representation, config: OwnConfig) -> Arranged:
    """Fit clusters, difficulty and quality, filter, cut to whole batches and plan.

    Raises ValueError when a filter is asked for that could not be fitted or that leaves less than a batch.
    """
    ids, b = data.ids, config.prompts_per_step
    settings = properties_of(len(ids), config)
    grouping = group(found, settings, config.seed)
    difficulty = fit_scores(found, grouping, data.labels, settings, config.seed)
    quality = fit_quality(found, data.quality, settings, config.seed)
    ranking, ties, ranked_by = _ranking(ids, found, difficulty, config)
    kept = _filtered(ids, quality, config)
    rows = np.flatnonzero(kept)
    full = whole_batches([ids[i] for i in rows], [normalise(data.samples[i].prompt) for i in rows], b)
    planned = rows[full]
    plan = build_plan(
        [ids[i] for i in planned], grouping.assignment.label[planned], ranking[planned], ties[planned], found.lengths[planned],
        PlanConfig(prompts_per_step=b, swapped_per_batch=config.swapped_per_batch,
                   difficulty_tolerance=TOLERANCE * float(ranking[planned].std())),
    )  # fmt: skip
    dropped = [
        Dropped(
            data.where[i], ids[i], "filtered", f"quality score {quality.score[i]:.3f} is not among the best {config.keep:.0%}"
        )
        for i in np.flatnonzero(~kept)
    ] + [Dropped(data.where[i], ids[i], "left over", f"fills no whole batch of {b}") for i in rows[~full]]
    row = {name: i for i, name in enumerate(ids)}
    shuffled = random_order([ids[i] for i in planned], sub_seed(config.seed, "diversity"))
    spread = [
        float(batch_diversity(grouping.points, order.reshape(-1, b)).mean())
        for order in (np.array([row[name] for name in plan.ids]), planned[shuffled])
    ]
    return Arranged(config, data, found, grouping, difficulty, quality, ranking, ranked_by, plan, tuple(dropped), *spread)


def _ranking(
    ids: Sequence[str], found: Representation, difficulty: Difficulty | None, config: OwnConfig
) -> tuple[np.ndarray, np.ndarray, str]:
    """What orders rows within a cluster [N], what breaks its ties [N], and its name."""
    if difficulty is not None:
        return difficulty.ranking, difficulty.raw, "difficulty"
    if config.without_labels == "length":
        return found.lengths, found.lengths, "length"
    place = np.empty(len(ids))
    place[random_order(ids, sub_seed(config.seed, "within"))] = np.arange(len(ids))
    return place, place, "random"


def _filtered(ids: Sequence[str], quality: Quality | None, config: OwnConfig) -> np.ndarray:
    """Mask bool [N] of the rows that the quality filter keeps, at least a batch."""
    if config.keep is None:
        return np.ones(len(ids), dtype=bool)
    if quality is None:
        raise ValueError("--keep needs at least 10 rows labelled true and 10 labelled false: label more, or leave --keep out")
    kept = keep_top_k(quality.score, ids, max(1, round(config.keep * len(ids))))
    if kept.sum() < config.prompts_per_step:
        raise ValueError(f"the filter keeps {kept.sum()} of {len(ids)} rows, less than a batch of {config.prompts_per_step}: "
                         "raise --keep")  # fmt: skip
    return kept


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
