"""Stage `real_features`: which real problems the study of clusters, sources and flaws reads, and their features.

Three parts: MATH with solutions (clusters and features), DeepMath against DeepScaleR (source filter), ValiMath (flaws).
The two sources write mathematics between different signs, so their questions are also read with these signs taken away.
Rows are taken by the hash of their question, a question stands in one role alone, and whatever is left out is counted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from saerl_lib.artifacts import ArtifactError, Stage, file_sha256, get_or_compute
from saerl_lib.config import MethodConfig, Profile, to_dict
from saerl_lib.data.published import load_labelled
from saerl_lib.data.rows import jsonl
from saerl_lib.data.sample import LabelledSet, Sample, hash_order, split_by_hash, unique, without
from saerl_lib.encode.features import FeatureTable, load_features, save_features
from saerl_lib.encode.kinds_stage import ladder_reader, sae_kinds_stage
from saerl_lib.encode.metadata import metadata_features
from saerl_lib.encode.one_pass import read_retaining
from saerl_lib.encode.readers import Reader
from saerl_lib.encode.real_stage import data_file, held_out_keys, text_model_stage

SAE, UNTRAINED = "sae", "sae_untrained"
"""Ladder names of the SAE and of its control of random weights; `sae#1` is the second seed."""
PAPER_SOURCES = (103_022, 107_021)
"""Samples of the target and of the other source in the paper's pool (Table 6)."""
CLASSIFIER_SHARE = 0.15
"""Largest share of a source that trains the source probe, and of the other source that places thresholds (ours)."""
PLAIN = "sources_plain"
"""The part `sources` after `plain_text`, read by the first SAE alone."""
DELIMITERS = r"\\[()\[\]]|\$+"
"""Signs that open and close a formula: \\( \\) \\[ \\] $ $$."""
FILES = {"math": ("math_train",), "sources": ("deepmath_18k", "deepscaler_pass_rate"), "valimath": ("quality_valimath",)}
"""Part -> the files it reads, the target source first."""


@dataclass(frozen=True)
class RealPart:
    """N problems of one question of the study."""

    name: str
    """Key of `FILES`."""
    data: LabelledSet
    role: np.ndarray
    """[N] str: fit (MATH), train / held_out / pool (sources), train / test (ValiMath)."""
    source: np.ndarray
    """[N] str, the file that a row comes from."""
    counts: pd.DataFrame
    """Rows of real_counts.csv: part, source, what, n."""

    def where(self, role: str) -> np.ndarray:
        """Row numbers of a role."""
        return np.flatnonzero(self.role == role)

    @property
    def texts(self) -> list[str]:
        """The questions."""
        return [s.prompt for s in self.data.samples]


def fresh(name: str, held_out: set[str]) -> tuple[LabelledSet, list[tuple[str, int]]]:
    """A file without repeated questions and without those of evaluation and test sets, in the order of their hashes."""
    data = load_labelled(data_file(name))
    single = unique(data)
    left = without(single, held_out)
    counts = [("in the file", len(data)), ("left out: repeated question", len(data) - len(single)),
              ("left out: question of an evaluation or test set", len(single) - len(left))]  # fmt: skip
    return left.rows(hash_order(left)), counts


def _counted(part: str, source: str, counts: Sequence[tuple[str, int]]) -> list[tuple[str, str, str, int]]:
    return [(part, source, what, n) for what, n in counts]


def _part(name: str, pieces: Sequence[tuple[LabelledSet, np.ndarray]], counts: list[tuple[str, str, str, int]]) -> RealPart:
    role = np.concatenate([roles for _, roles in pieces])
    source = np.concatenate([np.repeat(data.name, len(data)) for data, _ in pieces])
    labels = {k: np.concatenate([data.labels[k] for data, _ in pieces]) for k in pieces[0][0].labels}
    samples = tuple(s for data, _ in pieces for s in data.samples)
    joined = LabelledSet(name, samples, labels, tuple(o for data, _ in pieces for o in data.overlap))
    counts = counts + [
        (name, str(s), f"used: {r}", int(((source == s) & (role == r)).sum()))
        for s in dict.fromkeys(source) for r in dict.fromkeys(role[source == s])
    ]  # fmt: skip
    return RealPart(name, joined, role, source, pd.DataFrame(counts, columns=["part", "source", "what", "n"]))


def math_part(config: MethodConfig, held_out: set[str]) -> RealPart:
    """MATH's training problems with their solutions; all of them, or `max_train` where the profile is small."""
    data, counts = fresh("math_train", held_out)
    kept = data if config.official_split else data.rows(np.arange(min(len(data), config.max_train)))
    counts.append(("left out: beyond the profile's size", len(data) - len(kept)))
    return _part("math", [(kept, np.repeat("fit", len(kept)))], _counted("math", "math_train", counts))


def source_part(config: MethodConfig, held_out: set[str]) -> RealPart:
    """DeepMath (target) and DeepScaleR questions: the source probe's training rows, held-out negatives, and a pool.

    The pool has the paper's proportions; the first rows by hash train the probe, the next ones of the other source place
    thresholds. A question of both sources stays with the target.
    """
    target, counts = fresh("deepmath_18k", held_out)
    other, more = fresh("deepscaler_pass_rate", held_out)
    apart = without(other, set(target.keys))
    more.append(("left out: question of the target source", len(other) - len(apart)))
    train = [min(config.max_train, int(CLASSIFIER_SHARE * len(data))) for data in (target, apart)]
    ratio = PAPER_SOURCES[1] / PAPER_SOURCES[0]
    room = min(len(target) - train[0], int((len(apart) - 2 * train[1]) / ratio))
    size = room if config.official_split else min(config.max_test, room)
    sizes = [(train[0], 0, size), (train[1], train[1], round(size * ratio))]
    pieces, rows = [], []
    for data, parts, seen in ((target, sizes[0], counts), (apart, sizes[1], more)):
        role = np.repeat(("train", "held_out", "pool"), parts)
        seen.append(("left out: beyond the proportion or the profile's size", len(data) - len(role)))
        pieces.append((data.rows(np.arange(len(role))), role))
        rows += _counted("sources", data.name, seen)
    return _part("sources", pieces, rows)


def valimath_part(config: MethodConfig, held_out: set[str]) -> RealPart:
    """ValiMath questions, split by hash as the ladder's task `well_posed` is."""
    data, counts = fresh("quality_valimath", held_out)
    labelled = data.with_label("valid")
    train, test = split_by_hash(labelled, config.max_train, config.max_test)
    counts.append(("left out: no label", len(data) - len(labelled)))
    counts.append(("left out: beyond the profile's size", len(labelled) - len(train) - len(test)))
    pieces = [(train, np.repeat("train", len(train))), (test, np.repeat("test", len(test)))]
    return _part("valimath", pieces, _counted("valimath", "quality_valimath", counts))


def real_parts(config: MethodConfig) -> dict[str, RealPart]:
    """Every part of the study by name. Raises ArtifactError without `SAERL_DATA_DIR`."""
    held_out = held_out_keys()
    return {part.name: part for part in (f(config, held_out) for f in (math_part, source_part, valimath_part))}


def plain_text(text: str) -> str:
    """A question without the signs around its formulas and with single blanks: what is left is wording and mathematics.

    >>> plain_text("Let \\\\( x \\\\) be $2$.\\n  Find it.")
    'Let x be 2. Find it.'
    """
    return " ".join(re.sub(DELIMITERS, " ", text).replace(" .", ".").split())


def plain_part(part: RealPart) -> RealPart:
    """The same rows with `plain_text` questions, as part `sources_plain`."""
    samples = tuple(dataclasses.replace(s, prompt=plain_text(s.prompt)) for s in part.data.samples)
    data = dataclasses.replace(part.data, name=PLAIN, samples=samples)
    return RealPart(PLAIN, data, part.role, part.source, part.counts.iloc[:0])


def flaw_kinds(part: RealPart) -> np.ndarray:
    """[N] the first check that a ValiMath question failed, 'unnamed' where the file does not say, '' when it is valid."""
    records = jsonl(data_file("quality_valimath"))
    failed = {r["id"]: (r.get("meta") or {}).get("first_failed_check") or "unnamed" for r in records}
    valid = part.data.labels["valid"] > 0.5
    return np.array(["" if ok else failed[s.id].removesuffix("_check") for s, ok in zip(part.data.samples, valid, strict=True)])


def study_reader(reader: Reader, part: str) -> Reader:
    """The readers that a part needs: the SAE in every seed and one SAE of random weights; plain text only the first SAE."""
    wanted = {n: f for n, f in reader.saes.items() if n == f"{SAE}#0" or part != PLAIN and n in _study_names(reader)}
    return dataclasses.replace(reader, saes=wanted)


def _study_names(reader: Reader) -> set[str]:
    return {n for n in reader.saes if n.split("#")[0] == SAE} | {f"{UNTRAINED}#0"}


def encode_part(
    part: RealPart, reader: Reader, method: MethodConfig
) -> tuple[dict[str, FeatureTable], dict[str, np.ndarray], int]:
    """Reader name -> features of a part, SAE name -> its retained latents, and how many texts were cut.

    z is [N, 4 S] for an SAE and [N, 4 D] for `dense`. A part without solutions keeps the prompt halves alone, [N, 2 S];
    its solution metadata are NaN.
    """
    samples, config = part.data.samples, method.text_sae
    chosen = {s.id for s in training_samples(part, method.max_train)}
    pooled, retained = read_retaining(
        samples, chosen, reader, config.retained_latents, config.frequency_band, config.retained_rule, method.workers
    )
    found = pooled.features
    if not all(s.solved for s in samples):
        found = {name: z[:, : z.shape[1] // 2].copy() for name, z in found.items()}
    ids, metadata = tuple(s.id for s in samples), metadata_features(samples)
    return {name: FeatureTable(ids, z, metadata) for name, z in found.items()}, retained, pooled.truncated


def training_samples(part: RealPart, limit: int) -> list[Sample]:
    """Samples that retained latents may be chosen from: the first `limit` by hash of the rows that are fitted on."""
    rows = part.where("train") if (part.role == "train").any() else part.where("fit")
    order = hash_order(part.data.rows(rows))
    return [part.data.samples[i] for i in rows[order][:limit]]


def real_features_stage(profile: Profile) -> Stage:
    """`<part>/<reader>.safetensors`, `<part>/retained.safetensors` and counts.parquet (rows of real_counts.csv)."""
    method, text_model = profile.method, text_model_stage(profile)
    saes = sae_kinds_stage(profile, "text", text_model)

    def compute(folder: Path) -> None:
        parts, counts = real_parts(method), []
        for name, part in {**parts, PLAIN: plain_part(parts["sources"])}.items():
            reader = study_reader(ladder_reader(profile, saes, text_model), name)
            tables, retained, cut = encode_part(part, reader, method)
            (folder / name).mkdir()
            save_file({n: np.ascontiguousarray(r) for n, r in retained.items()}, folder / name / "retained.safetensors")
            for reader_name, table in tables.items():
                save_features(table, folder / name / f"{reader_name}.safetensors")
            extra = (name, "all", f"used, but cut at {method.max_text_tokens} tokens", cut)
            counts.append(pd.concat([part.counts, pd.DataFrame([extra], columns=part.counts.columns)]))
        pd.concat(counts).to_parquet(folder / "counts.parquet", index=False)

    files = {name: file_sha256(data_file(name))[:16] for names in FILES.values() for name in names}
    settings = {"method": to_dict(method), "data": files, "seed": profile.seed}
    return get_or_compute(profile, "real_features", FEATURES_CODE, settings, compute, (text_model, saes))


FEATURES_CODE = (
    "data/published.py", "data/rows.py", "data/sample.py", "encode/activations.py", "encode/features.py", "encode/metadata.py",
    "encode/one_pass.py", "encode/pooling.py", "encode/readers.py", "encode/retain.py", "encode/sparse.py", "encode/spans.py",
    "encode/topk.py", "properties/real_features.py",
)  # fmt: skip
"""Files that decide the features; the LM and the SAEs come in as stages."""


def load_part(stage: Stage, part: RealPart) -> dict[str, FeatureTable]:
    """Reader name -> features of a part; z of a part without solutions is [N, 2 S].

    Raises ArtifactError when they are of other samples.
    """
    files = [path for path in sorted((stage.folder / part.name).glob("*.safetensors")) if path.stem != "retained"]
    tables = {path.stem: load_features(path) for path in files}
    if any(table.ids != tuple(s.id for s in part.data.samples) for table in tables.values()):
        raise ArtifactError(f"{stage.folder}: features of other samples; delete the folder and run again")
    return tables


def load_retained(stage: Stage, part: str) -> dict[str, np.ndarray]:
    """Reader name -> retained latents of a part, ascending, [S]."""
    return load_file(stage.folder / part / "retained.safetensors")
