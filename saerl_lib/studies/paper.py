"""The paper's run step by step: data, encode, plan, measure, train, evaluate, report (`python -m saerl_lib paper STEP`).

Every step leaves stages that are found again by their content, so that each can run alone, on the machine that suits it. Here
are the steps up to the plan; `paper_runs` has the others.

Where the path keeps its stages, and which steps may compute: the others are only read.

Models, SAE and data sets of a run: the local stand-ins where they are given, else the hub at pinned revisions.

Step `data`: the published rows as samples without doubles, without benchmark questions, and every row counted.

DeepMath-103K is the target source and carries the difficulty labels; of NuminaMath-1.5 a fixed random part joins it in the
noisy pool (paper, Table 6); DeepScaleR serves the out-of-domain regimes where its rows are labelled, PRM800K the quality of
solutions. Questions are the same when their text is, but for case, white space and marks; paraphrases are not found.

Step `encode`: all SAE latents of the samples, pooled, in parts that are kept one by one; then z of the retained latents.

The parts lie beside the stages, keyed by their samples, model and SAE: what a kill loses is the part that was under way. The
retained set is chosen from the samples of L alone (paper: 240 latents, the rule is not stated; ours).

Stage `sae_quality`: whether the SAE fits the model, measured on the first of L before anything is encoded.

The control ladder on the paper's data: difficulty in three regimes and quality of worked solutions (paper, Tables 2, 3).

Labels of two sources have no common scale: each is brought to mean 0 and deviation 1 before they are joined. A question of
PRM800K has many solutions: all of them lie on one side of the split, and intervals resample questions (both ours).

Step `plan`, first half: source classifier, clusters, difficulty by equation 10, and what the probes measure (paper, 2 to 4).

The labels of L alone are read. Samples with a label of either kind take scores of models that did not see it.

Step `plan`, second half: the order of every arm and seed, the samples beside it, and the exports for other trainers.

Samples whose prompt is too long for the policy (paper, Table 9: 1,024 tokens), and those that fill no whole batch, are left out
and listed. SAERL's plan is the same for all seeds. That of an arm which chooses as it learns only names its samples, in a
random order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, file_sha256, get_or_compute, is_complete, module_of, stage_key
from saerl_lib.config import PlanConfig, Profile, PropertyConfig, content_hash, sub_seed
from saerl_lib.cost import ORDERS, SELECTORS, HubModel, PaperConfig
from saerl_lib.data.hub import BENCHMARKS, HubData
from saerl_lib.data.hub import SETS as PUBLISHED_SETS
from saerl_lib.data.published import READERS, UNJUDGED, Reader, deepmath, published_rows
from saerl_lib.data.sample import DataError, Sample, hash_share, normalise, read_samples, write_samples
from saerl_lib.encode.metadata import metadata_features
from saerl_lib.encode.models import open_reader
from saerl_lib.encode.parts import encode
from saerl_lib.encode.pool import Encoder
from saerl_lib.encode.sae import MEASURED_SAMPLES, SAEGateError, SAEQuality, explains, measured
from saerl_lib.encode.store import FeatureTable, choose_retained, load_features, save_features
from saerl_lib.own import MIN_CLASS, SOLVED_SHARE, TOLERANCE, Representation, finish, fit_quality, whole_batches
from saerl_lib.plan.batch_plan import write_plan
from saerl_lib.plan.export import export_plan, open_export
from saerl_lib.plan.orders import build_plan
from saerl_lib.properties.difficulty import DifficultyModel
from saerl_lib.properties.probes import LEAST_TEST, LEAST_TRAIN, Task, joined_labels, solution_quality
from saerl_lib.properties.quality import filter_table, keep_top_k, paper_share_k, source_separation
from saerl_lib.properties.scorer import Columns, fit_scorer
from saerl_lib.studies.ladder import Blocks, empty_row, ladder
from saerl_lib.train.sampler import prompt_lengths

if TYPE_CHECKING:
    from saerl_lib.encode.models import ReaderSpec

STEPS = ("data", "encode", "plan", "measure", "train", "evaluate", "report")
"""In the order in which data flow."""
PROFILE = Profile(name="paper")
"""Only its name is read here: every stage carries the settings that decide it."""


@dataclass(frozen=True)
class Home:
    """One run of the path."""

    config: PaperConfig
    steps: frozenset[str]
    """Steps that may compute what is missing."""
    say: Callable[[str], None] = lambda text: None
    """Told every stage."""

    @property
    def folder(self) -> Path:
        """Stages, training runs and tables."""
        return paths.profile_dir(PROFILE.name)

    def stage(
        self, step: str, name: str, settings: Mapping[str, Any], compute: Callable[[Path], None],
        inputs: tuple[Stage, ...] = (),
    ) -> Stage:
        """The stage `name` of `step`, found or computed.

        Raises ArtifactError when it is not there and its step was not asked for.
        """
        if step not in self.steps and not is_complete(self.folder / name, stage_key(name, module_of(compute), settings, inputs)):
            raise missing(step, f"stage {name}")
        found = get_or_compute(PROFILE, name, settings, compute, inputs)
        if step in self.steps:
            self.say(f"{step}: {name} {'computed' if found.computed else 'found'}")
        return found


def missing(step: str, what: str) -> ArtifactError:
    """The error for something that an earlier step leaves."""
    fix = f"run `python -m saerl_lib paper {step}` with the same ones"
    return ArtifactError(f"{what} is missing or was made with other options: {fix}")


REQUIRED = ("deepmath", "numinamath", "aime24", "amc23", "gsm8k", "math500", "minerva", "olympiadbench")
"""Sets that the path cannot do without."""
OPTIONAL = ("deepscaler", "prm800k")
"""Read where they are there: the out-of-domain regimes and the quality of solutions (paper, Tables 2 and 3)."""
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")
"""What is downloaded of a model: no pickle, no code."""


def data_set(config: PaperConfig, name: str) -> HubData:
    """The set `name` as it is to be read: a folder of `config.sources`, or the hub at its pinned revision."""
    data = PUBLISHED_SETS[name]
    if config.sources is not None:
        return dataclasses.replace(data, repository=str(Path(config.sources) / data.repository), revision=None)
    return dataclasses.replace(data, revision=dict(config.revisions).get(name, data.revision))


def sets_to_read(config: PaperConfig) -> tuple[str, ...]:
    """Names of the sets that are read.

    Raises DataError that lists every folder which is missing under `config.sources`, and every set without a revision.
    """
    unknown = [name for name, _ in config.revisions if name not in PUBLISHED_SETS]
    if unknown:
        raise DataError(f"--revision {unknown[0]}: no such set; choose from {', '.join(PUBLISHED_SETS)}")
    if config.sources is None:
        bare = [name for name in REQUIRED if data_set(config, name).revision is None]
        if bare:
            raise DataError(f"not pinned yet: {', '.join(bare)}; pass --revision SET=HASH for each, or --sources DIR")
        return (*REQUIRED, *OPTIONAL)
    absent = [PUBLISHED_SETS[name].repository for name in REQUIRED if not Path(data_set(config, name).repository).is_dir()]
    if absent:
        raise DataError(f"--sources {config.sources}: no folder {', '.join(absent)}; put every set there as OWNER/NAME")
    return (*REQUIRED, *(name for name in OPTIONAL if Path(data_set(config, name).repository).is_dir()))


def data_identity(config: PaperConfig, name: str) -> str:
    """What decides the rows of a set: its revision, or the contents of its folder."""
    data = data_set(config, name)
    return folder_digest(Path(data.repository)) if config.sources is not None else f"{data.repository}@{data.revision}"


def folder_digest(folder: Path, patterns: Iterable[str] = ("*",)) -> str:
    """Hash of names and contents of a folder's files, hidden ones left out."""
    files = sorted({path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()})
    shown = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return content_hash({str(path.relative_to(folder)): file_sha256(path) for path in shown})


def samples_digest(samples: Iterable[Any]) -> str:
    """Hash of all fields of samples, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr(sample).encode())
    return digest.hexdigest()[:16]


def policy_model(config: PaperConfig) -> str | HubModel:
    """The policy's folder, or the paper's model of that repository. Raises DataError for a name that is neither."""
    if Path(config.policy).is_dir():
        return config.policy
    found = [model for model in config.policies if model.repository == config.policy]
    if not found:
        names = " or ".join(model.repository for model in config.policies)
        raise DataError(f"--policy {config.policy}: no such folder; name a folder in Hugging Face format, or {names}")
    return found[0]


def encoder_model(config: PaperConfig) -> str | HubModel:
    """The reading model's folder, or the paper's."""
    return config.encoder_folder or config.reading_model


def model_folder(model: str | HubModel, option: str) -> Path:
    """A folder with the model: the given one, or the hub's snapshot at its pinned revision, without pickles or code.

    Raises DataError when the folder holds no configuration or weights, or the snapshot cannot be fetched.
    """
    if isinstance(model, str):
        folder = Path(model)
        for needed in ("config.json", "*.safetensors", "tokenizer.json"):
            if not any(folder.glob(needed)):
                raise DataError(f"{option} {model}: no {needed} there; name a folder in Hugging Face format with safetensors")
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.repository, revision=model.revision, allow_patterns=list(MODEL_FILES)))
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{model.repository} cannot be fetched ({reason}); set HF_HUB_OFFLINE=0 to allow downloads, or pass {option} FOLDER"
        ) from error


def model_identity(model: str | HubModel) -> str:
    """What decides a model: its revision, or the contents of its folder."""
    return f"{model.repository}@{model.revision}" if isinstance(model, HubModel) else folder_digest(Path(model), MODEL_FILES)


def sae_name(config: PaperConfig) -> str:
    """The SAE in the words of `open_sae_source`. Raises DataError when it is one that has to be trained first."""
    if config.sae_source is not None:
        return config.sae_source
    if config.sae == "trained":
        raise DataError("sae='trained': train the SAE first and pass its folder as --sae")
    return f"opensae:{config.opensae_folder}" if config.sae == "opensae" else f"saelens:{config.sae_release}/{config.sae_id}"


def sae_identity(config: PaperConfig) -> str:
    """What decides the SAE: the contents of its folder, or its name in SAELens' registry, which pins no revision."""
    name = sae_name(config)
    folder = Path(name.removeprefix("opensae:"))
    return folder_digest(folder) if folder.is_dir() else name


def require_sae(config: PaperConfig) -> None:
    """Raise DataError unless the SAE's folder holds a configuration; a registry's SAE is looked for when it is read."""
    name = sae_name(config)
    folder, file = Path(name.removeprefix("opensae:")), "config.json" if name.startswith("opensae:") else "cfg.json"
    if not name.startswith("saelens:") and not (folder / file).is_file():
        raise DataError(f"--sae {name}: no {file} there; name a folder saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID")


def require_stand_ins(config: PaperConfig) -> None:
    """Look at every local stand-in that was given before anything is read. Raises DataError that lists all that is missing."""
    problems = []
    for wanted, check in (
        (config.sources, lambda: sets_to_read(config)),
        (config.encoder_folder, lambda: model_folder(str(config.encoder_folder), "--encoder")),
        (config.sae_source, lambda: require_sae(config)),
        (config.policy, lambda: model_folder(config.policy, "--policy") if isinstance(policy_model(config), str) else None),
    ):
        try:
            _ = check() if wanted is not None else None
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("; ".join(problems))


@dataclass(frozen=True)
class Precision:
    """Where an encoder runs and in which numbers; digits differ, so that parts of two kinds are never mixed."""

    device: str
    """cpu or cuda."""
    bf16: bool
    """Model in bfloat16 (the SAE stays in float32); float32 otherwise, and always on a CPU."""


def precisions(config: PaperConfig) -> tuple[Precision, Precision]:
    """This machine's way of encoding first, then the one of a machine with, or without, a GPU."""
    import torch

    gpu, cpu = Precision("cuda", config.bf16), Precision("cpu", False)
    return (gpu, cpu) if torch.cuda.is_available() else (cpu, gpu)


def encoder_settings(config: PaperConfig, folder: Path) -> ReaderSpec:
    """The encoder in `folder` with its SAE, on the GPU where there is one."""
    from saerl_lib.encode.models import ReaderSpec

    here = precisions(config)[0]
    return ReaderSpec(
        str(folder), config.encoder_layer, sae_name(config), config.encode_max_tokens, config.tokens_per_batch,
        here.device, here.bf16,
    )  # fmt: skip


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


def quality_stage(
    home: Home, samples: Sequence[Sample], reading: Mapping[str, Any], opened: Callable[[], Encoder]
) -> Stage:
    """sae_quality.csv of the SAE on the first samples of L. Raises SAEGateError for an SAE that does not explain them."""
    part = samples[:MEASURED_SAMPLES]

    def compute(folder: Path) -> None:
        quality = measured(part, opened(), sae_name(home.config))
        require_explained(quality, home.config)
        quality_table(quality).to_csv(folder / "sae_quality.csv", index=False, float_format="%.6g", lineterminator="\n")

    return home.stage("encode", "sae_quality", {**reading, "samples": samples_digest(part)}, compute)


def require_explained(quality: SAEQuality, config: PaperConfig) -> None:
    """Raise SAEGateError unless the SAE reconstructs better than the mean vector does."""
    if not explains(quality):
        raise SAEGateError(
            f"--sae {sae_name(config)}: explained variance {quality.explained_variance:.3f} on {quality.n_tokens} tokens is not "
            f"above 0, which the mean vector alone would reach; block {config.encoder_layer} (--layer) or the model (--encoder) "
            "is probably not the one that this SAE was trained on"
        )


def quality_table(quality: SAEQuality) -> pd.DataFrame:
    """Rows in the schema of the study's sae_quality.csv."""
    rows = [
        ("paper", "explained variance", quality.explained_variance, 0.0, 1.0, True, quality.n_tokens),
        ("paper", "dead share", quality.dead_share, None, None, None, quality.n_tokens),
        ("paper", "L0", quality.l0, None, None, None, quality.n_tokens),
    ]
    return pd.DataFrame(rows, columns=["encoder", "quantity", "value", "low", "high", "met", "n_tokens"])


PARTS = "parts"
"""Folder of the stores of all latents, one a group."""


def encode_stage(home: Home, data: Stage) -> Stage:
    """Features of every group, <group>.safetensors, with lengths.parquet (sample_id, tokens, truncated), truncated.csv
    (group, n, truncated) and sae_quality.csv.

    A later step on another kind of machine reads what was encoded here: a GPU is needed to encode, not to plan.
    Raises DataError for a model or SAE that is not there, SAEGateError for an SAE that does not fit the model or explains
    nothing of it, and FloatingPointError for non-finite activations.
    """
    require_sae(home.config)
    here, elsewhere = precisions(home.config)
    try:
        return _encoded(home, data, here)
    except ArtifactError:
        if "encode" in home.steps:
            raise
        try:
            return _encoded(home, data, elsewhere)
        except ArtifactError:
            pass
        raise


def _encoded(home: Home, data: Stage, precision: Precision) -> Stage:
    config, model = home.config, encoder_model(home.config)
    reading = {
        "encoder": model_identity(model), "sae": sae_identity(config), "layer": config.encoder_layer,
        "max_tokens": config.encode_max_tokens, "tokens_per_batch": config.tokens_per_batch,
        "device": precision.device, "bf16": precision.bf16,
    }  # fmt: skip
    samples = {name: group(data, name) for name in GROUPS}

    @cache
    def opened() -> Encoder:
        everything = [sample.prompt for part in samples.values() for sample in part]
        return open_reader(encoder_settings(config, model_folder(model, "--encoder")), everything)

    quality = quality_stage(home, samples["labelled"], reading, opened)

    def compute(folder: Path) -> None:
        spec, read = encoder_settings(config, model_folder(model, "--encoder")), {}
        for name, part in samples.items():
            if part:
                read[name] = encode(part, spec, home.folder / PARTS / name, opened=opened)
                home.say(f"encode: {name}, {read[name].parts} parts, {read[name].reused} of them there before")
        labelled = read["labelled"].store
        retained = choose_retained(labelled, min(config.retained_latents, labelled.width))
        lengths = []
        for name, done in read.items():
            table = FeatureTable(done.store.ids, done.store.select(retained), metadata_features(samples[name]))
            save_features(table, folder / f"{name}.safetensors")
            columns = {column: done.store.values(column) for column in ("tokens", "truncated")}
            lengths.append(pd.DataFrame({"sample_id": done.store.ids, **columns}))
        pd.concat(lengths).to_parquet(folder / "lengths.parquet", index=False)
        cut = [(name, len(part), read[name].totals["truncated"] if name in read else 0) for name, part in samples.items()]
        counted = pd.DataFrame(cut, columns=["group", "n", "truncated"])
        counted.to_csv(folder / "truncated.csv", index=False, lineterminator="\n")
        shutil.copyfile(quality.path("sae_quality.csv"), folder / "sae_quality.csv")

    decides = {**reading, "retained": config.retained_latents, "samples": [samples_digest(part) for part in samples.values()]}
    return home.stage("encode", "features", decides, compute, (quality,))


def features(stage: Stage, names: Sequence[str]) -> FeatureTable:
    """The feature tables of some groups, one below the other."""
    tables = [load_features(stage.path(f"{name}.safetensors")) for name in names]
    ids = tuple(i for table in tables for i in table.ids)
    return FeatureTable(ids, np.concatenate([t.z for t in tables]), np.concatenate([t.metadata for t in tables]))


def lengths(stage: Stage, ids: Sequence[str]) -> np.ndarray:
    """Tokens of prompt and solution as they were encoded, float [N]."""
    found = pd.read_parquet(stage.path("lengths.parquet")).set_index("sample_id")["tokens"]
    return found.loc[list(ids)].to_numpy(dtype=float)


TRAIN_SHARE = 0.75
"""Of the questions, by their hash (not stated in the paper; ours)."""


def trains(question: str) -> bool:
    """Whether the solutions of a normalised question are trained on: by another hash than the one that draws questions."""
    return hash_share(f"quality {question}") < TRAIN_SHARE


def regimes_table(data: Stage, encoded: Stage, config: PaperConfig, settings: PropertyConfig) -> pd.DataFrame:
    """Rows as in probe_ladder.csv: in domain, out of domain, adapted; a regime without enough labelled rows has no value."""
    groups = {
        name: [s for s in group(data, name) if np.isfinite(s.difficulty)] for name in ("labelled", "target", "outside")
    }
    labelled, outside = groups["labelled"], groups["outside"]
    cut = min(config.adapted_labels, len(outside) // 10)  # of a small set a tenth adapts
    some, held = outside[:cut], outside[cut : cut + config.outside_samples]
    both = joined_labels(_labels(labelled), *([_labels(some)] if some else []))
    read = features(encoded, ("labelled", "target"))
    with_solution = bool(read.solved.mean() >= SOLVED_SHARE)
    blocks = _blocks(encoded, ("labelled", "target", *(["outside"] if outside else [])))
    named = (
        ("deepmath", "difficulty_in_domain", labelled, _labels(labelled), groups["target"]),
        ("deepscaler", "difficulty_out_of_domain", labelled, joined_labels(_labels(labelled)), held),
        ("deepscaler", "difficulty_adapted", [*labelled, *some], both, held),
    )
    return pd.concat(
        [_rows(blocks, settings, config.seed, dataset, target, "rank", train, y, test, _labels(test), with_solution)
         for dataset, target, train, y, test in named], ignore_index=True
    )  # fmt: skip


def solutions_table(data: Stage, encoded: Stage, config: PaperConfig, settings: PropertyConfig) -> pd.DataFrame:
    """Rows as in probe_ladder.csv of the quality of solutions; one row without a value where there are too few of them."""
    samples = group(data, "rated")
    keys = np.array([normalise(sample.prompt) for sample in samples], dtype=str)
    is_train = np.array([trains(key) for key in keys], dtype=bool)
    train, test = ([s for s, own in zip(samples, is_train, strict=True) if own == side] for side in (True, False))
    y, truth = (np.array([solution_quality(s) for s in side]) for side in (train, test))
    blocks = _blocks(encoded, ("rated",)) if samples else {}
    return _rows(blocks, settings, config.seed, "prm800k", "solution_quality", "quality", train, y, test, truth, True,
                 keys[~is_train])  # fmt: skip


def _labels(samples: list[Sample]) -> np.ndarray:
    return np.array([sample.difficulty for sample in samples], dtype=float)


def _blocks(encoded: Stage, names: tuple[str, ...]) -> Blocks:
    table = features(encoded, names)
    return {"sae": (table.ids, table.z)}


def _rows(
    blocks: Blocks, settings: PropertyConfig, seed: int, dataset: str, target: str, kind: str, train: list[Sample], y: np.ndarray,
    test: list[Sample], truth: np.ndarray, with_solution: bool, groups: np.ndarray | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The ladder of one task, or the row without a value where it has too few samples or questions."""
    if len(train) < LEAST_TRAIN or len(test) < LEAST_TEST:
        return empty_row(dataset, target, kind, len(train), len(test))
    task = Task(dataset, target, kind, tuple(train), tuple(test), y, truth, with_solution, groups)
    return ladder([task], blocks, settings, seed)[0]


POOL = ("labelled", "target", "parent")
"""Groups of the noisy pool."""


def fit_stage(home: Home, data: Stage, encoded: Stage) -> Stage:
    """scores.parquet of the samples that may be planned, filter.csv, separation.csv, clusters.csv, difficulty.csv, solutions.csv.

    Raises DataError when a source has too few samples for the classifier.
    """
    config, settings = home.config, PropertyConfig(clusters=home.config.clusters)

    def compute(folder: Path) -> None:
        samples = [sample for name in POOL for sample in group(data, name)]
        ids = [s.id for s in samples]
        found = finish(features(encoded, POOL), lengths(encoded, ids), "tokens", "SAE features and metadata")
        is_target = np.array([s.source == "deepmath" for s in samples])
        score, held_out = source_scores(found, is_target, config, settings)
        rules = {**paper_share_k(len(ids)), "as many as the target": int(is_target.sum())}
        filter_table(score, ids, is_target, score[held_out & ~is_target], rules).to_csv(folder / "filter.csv", index=False)
        rows = source_separation(score, is_target, n_train=int(held_out.sum()), dataset="deepmath against numinamath",
                                 features="sae", config=settings, seed=sub_seed(config.seed, "separation"))  # fmt: skip
        pd.DataFrame(map(dataclasses.asdict, rows)).to_csv(folder / "separation.csv", index=False)
        kept = is_target if config.train_on == "target" else keep_top_k(score, ids, int(is_target.sum()))
        table, cards = pool_scores(samples, found, kept, config, settings)
        table.assign(source_score=score[table.pop("row")]).to_parquet(folder / "scores.parquet", index=False)
        cards.to_csv(folder / "clusters.csv", index=False)
        regimes_table(data, encoded, config, settings).to_csv(folder / "difficulty.csv", index=False)
        solutions_table(data, encoded, config, settings).to_csv(folder / "solutions.csv", index=False)

    decides = {
        "properties": dataclasses.asdict(settings), "seed": config.seed, "train_on": config.train_on,
        "source_labels": config.source_labels,
        "labelled": config.labelled_samples, "outside": [config.adapted_labels, config.outside_samples],
    }  # fmt: skip
    return home.stage("plan", "scores", decides, compute, (data, encoded))


def source_scores(
    found: Representation, is_target: np.ndarray, config: PaperConfig, settings: PropertyConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the source classifier on z [N] (paper, B.4), and the mask [N] of the samples it was trained on.

    The first `source_labels` of each source, which lie in hash order, are labelled; their scores are out of fold.
    """
    quality = np.full(len(is_target), np.nan)
    for source in (True, False):
        rows = np.flatnonzero(is_target == source)[: config.source_labels]
        if len(rows) < MIN_CLASS:
            name = "deepmath" if source else "numinamath"
            raise DataError(f"{name}: {len(rows)} samples are too few, the source classifier needs {MIN_CLASS} of each source")
        quality[rows] = float(source)
    table = found.table
    z = table.complete().z if found.with_solution else table.prompt_z
    fitted = fit_quality(dataclasses.replace(found, phi=z), quality, settings, config.seed)
    assert fitted is not None  # the classes are large enough
    return fitted.score, np.isfinite(quality)


def pool_scores(
    samples: list[Sample], found: Representation, kept: np.ndarray, config: PaperConfig, settings: PropertyConfig
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a sample of the pool or of L (row, sample_id, planned, cluster, raw, ranking, label, tokens), and one a cluster.

    Clusters, calibration and residuals see the pool and L; equation 10 ranks every row.
    """
    is_labelled = np.arange(len(samples)) < config.labelled_samples
    rows = np.flatnonzero(kept | is_labelled)
    phi = found.phi[rows]
    known = np.flatnonzero(is_labelled[rows])
    pool = Columns([samples[i].id for i in rows], phi, phi)
    labelled = Columns([pool.ids[i] for i in known], phi[known], phi[known])
    labels = np.array([samples[rows[i]].difficulty for i in known])
    scorer = fit_scorer(pool, labelled, labels, None, settings, config.seed)
    scores = scorer.score(pool)
    table = pd.DataFrame({
        "row": rows, "sample_id": pool.ids, "planned": kept[rows], "cluster": scores["cluster"], "raw": scores["raw"],
        "ranking": scores["ranking"], "label": [samples[i].difficulty for i in rows], "tokens": found.lengths[rows],
    })  # fmt: skip
    assert scorer.difficulty is not None  # L has labels
    return table, cluster_cards(table, scorer.difficulty)


def cluster_cards(table: pd.DataFrame, model: DifficultyModel) -> pd.DataFrame:
    """One row a cluster: size, labelled samples, Delta_c and lambda_c of equation 10, mean score and length."""
    found = model.corrections
    cards = table.groupby("cluster").agg(n=("row", "size"), ranking_mean=("ranking", "mean"), tokens_mean=("tokens", "mean"))
    numbers = {"n_labelled": found.n_labelled, "residual": found.residual, "shrinkage": found.shrinkage}
    return cards.reindex(range(len(found.residual))).assign(**numbers).rename_axis("cluster").reset_index()


def plans_stage(home: Home, data: Stage, scores: Stage) -> Stage:
    """<arm>-seed<k>.parquet, samples.parquet, exports/<trainer>/<arm>-seed<k>/ for arms with an order, and left_out.csv.

    Raises DataError when less than a batch is left, PlanError when an arm needs labels that are not there.
    """
    config, model = home.config, policy_model(home.config)
    settings = {
        "arms": list(config.arms), "seeds": config.seeds, "seed": config.seed, "exports": list(config.exports),
        "chat": config.chat, "plan": dataclasses.asdict(plan_settings(config)), "tolerance": TOLERANCE,
        "rollouts": config.rollouts_per_prompt,
        "max_prompt": config.max_prompt_tokens, "policy": model_identity(model),
    }  # fmt: skip

    def compute(folder: Path) -> None:
        tokenizer_folder = model_folder(model, "--policy")
        samples = {s.id: s for name in POOL for s in group(data, name)}
        table = pd.read_parquet(scores.path("scores.parquet"))
        pool = table[table["planned"]].reset_index(drop=True)
        chosen = [samples[name] for name in pool["sample_id"]]
        pool = pool.assign(prompt_tokens=prompt_lengths(chosen, tokenizer_folder, config.chat))
        reason = left_out(pool, chosen, config)
        rest = pd.DataFrame({"sample_id": pool["sample_id"], "reason": reason})[reason != ""]
        rest.to_csv(folder / "left_out.csv", index=False, lineterminator="\n")
        planned = pool[reason == ""].reset_index(drop=True)
        write_samples([samples[name] for name in planned["sample_id"]], folder / "samples.parquet")
        for arm in config.arms:
            for seed in range(config.seeds):
                _write(folder, arm, seed, planned, config)

    return home.stage("plan", "plans", settings, compute, (data, scores))


def plan_settings(config: PaperConfig, deviation: float | None = None) -> PlanConfig:
    """What decides an order; the tolerance of the tail swap is a share of the scores' standard deviation, where that is known."""
    found = PlanConfig(prompts_per_step=config.prompts_per_step, swapped_per_batch=config.swapped_per_batch)
    return found if deviation is None else dataclasses.replace(found, difficulty_tolerance=TOLERANCE * deviation)


def plan_name(arm: str, seed: int) -> str:
    """File of a plan without its suffix."""
    return f"{arm}-seed{seed}"


def left_out(pool: pd.DataFrame, samples: Sequence[Sample], config: PaperConfig) -> np.ndarray:
    """Why a sample of the pool is not planned, str [N], '' when it is. Raises DataError when less than a batch is left."""
    b, reason = config.prompts_per_step, np.full(len(pool), "", dtype=object)
    long = (pool["prompt_tokens"] > config.max_prompt_tokens).to_numpy()
    reason[long] = f"prompt above {config.max_prompt_tokens} tokens"
    rows = np.flatnonzero(~long)
    if len(rows) < b:
        raise DataError(f"{len(rows)} samples are left to plan, less than a batch of {b}: lower --prompts-per-step")
    full = whole_batches([samples[i].id for i in rows], [normalise(samples[i].prompt) for i in rows], b)
    reason[rows[~full]] = f"fills no whole batch of {b}"
    return reason


def _write(folder: Path, arm: str, seed: int, pool: pd.DataFrame, config: PaperConfig) -> None:
    settings = plan_settings(config, float(pool["ranking"].std(ddof=0)))
    arrays = (pool[name].to_numpy() for name in ("cluster", "ranking", "raw", "tokens"))
    plan = build_plan(
        pool["sample_id"].tolist(), *arrays, settings, order=ORDERS.get(arm, "random"),
        seed=sub_seed(config.seed, f"random-order-{seed}"), labels=pool["label"].to_numpy(),
    )  # fmt: skip
    name = plan_name(arm, seed)
    path = folder / f"{name}.parquet"
    write_plan(plan, path)
    export = open_export(path, folder / "samples.parquet", config.rollouts_per_prompt)
    for target in config.exports if arm not in SELECTORS else ():
        export_plan(export, target, folder / "exports" / target / name)
