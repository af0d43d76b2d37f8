"""What commands may be told about data, in frozen records: fields of rows, reader, a plan of one's own, published sets of a run.

A bad combination raises before a file is read, with the option and the fix in the message. The records of a profile are those of
`saerl_lib.config`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from saerl_lib.config import SMOLLM2, Profile, ReaderConfig, at_least, require

DEFAULTS = {"id": "id", "prompt": "question", "answer": "answer", "solution": "solution", "topic": "subject"}
"""Names that are looked for when none is given; only the prompt must be there."""
SHARE_FIELD = "pass_rate"
"""A label field of this name, also inside an object, is a share of correct attempts: it lies in 0..1 and larger is easier."""
NO_READER = "none"
"""Value of `reader` for metadata and TF-IDF features, without a model."""


@dataclass(frozen=True)
class RowFields:
    """Names of the fields in the file; a dot leads into an object. None: a usual name if it is there; a given one must be."""

    id: str | None = None
    """Field of the id; None: `id`, and without that field ids are made of row numbers."""
    prompt: str | None = None
    """Field of the prompt, text or chat messages; None: `question`, or another usual name."""
    answer: str | None = None
    """Field of the answer; None: `answer`, and without that field every row counts as answerable."""
    solution: str | None = None
    """Field of the solution; None: `solution`."""
    topic: str | None = None
    """Field of the topic; None: `subject`."""


@dataclass(frozen=True)
class Fields(RowFields):
    """The same with the labels that a plan reads."""

    labels: str | None = None
    """Field of the difficulty label, a number, such as level or pass_rate; None: there are no labels."""
    quality: str | None = None
    """Field of the quality label, true (sound, or of the wanted source) or false; None: there are none."""


@dataclass(frozen=True)
class Reading:
    """Which fields of the rows are read, and with which model and SAE."""

    fields: RowFields = field(default_factory=RowFields)
    reader: str = NO_READER
    """smollm2 (with its own layer and SAE), none (words and counts, a first look), or a model's folder or hub name."""
    layer: int | None = None
    """Block whose residual stream the SAE reads; 1 is the first."""
    sae: str | None = None
    """FOLDER saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID."""
    max_tokens: int | None = None
    """Tokens; longer samples are cut at the end and counted. None: the positions that the model has."""
    device: str = "cpu"
    """Where the model and the SAE run: cpu, cuda or cuda:N; last digits differ between devices."""
    bf16: bool = False
    """Run the model in bfloat16; the SAE stays in float32."""
    skip_bad_rows: bool = False
    """Leave malformed rows out and list them, instead of stopping."""

    def __post_init__(self) -> None:
        """Raises ValueError with the option and the fix."""
        bare, named = self.reader == NO_READER, f"--reader {self.reader}"
        chosen = self.layer is not None, self.sae is not None
        require(not (bare and any(chosen)), "--layer and --sae need a model: pass --reader FOLDER or leave both out")
        plain = self.device == "cpu" and not self.bf16
        require(not bare or plain, "--device and --bf16 need a model: pass --reader FOLDER or leave both out")
        known = bare or self.reader == SMOLLM2
        require(known or all(chosen), f"{named} needs --layer and --sae: name the layer that the SAE was trained on, and the SAE")
        there = known or not Path(self.reader).exists() or (Path(self.reader) / "config.json").is_file()
        require(there, f"{named}: no config.json there; name a folder in Hugging Face format")
        at_least(self, max_tokens=2, layer=1)

    @property
    def spec(self) -> ReaderConfig:
        """The model and SAE that read the rows."""
        own = ReaderConfig(self.reader, max_tokens=self.max_tokens, device=self.device, bf16=self.bf16)
        own = replace(own, layer=self.layer or own.layer, sae=self.sae or own.sae)
        return own if self.reader == SMOLLM2 else replace(own, max_norm=None)


@dataclass(frozen=True)
class OwnConfig(Reading):
    """Everything that decides a plan of one's own beside the data; a bad combination raises before a file is read."""

    fields: Fields = field(default_factory=Fields)
    split: str | None = None
    """Split of a data set on the Hugging Face Hub, None: train; or of a folder that holds several."""
    retained_latents: int = 240
    """|F|; all latents when the SAE has fewer (paper, section B.1, inferred)."""
    label_range: tuple[float, float] | None = None
    """Smallest and largest allowed label, in label units; None: any finite number (0 to 1 for `pass_rate`)."""
    larger_is_easier: bool = False
    """Turn the labels round: a larger one means easier; `pass_rate` is always turned."""
    clusters: int | None = None
    """K, number of clusters; None: 10 (paper), fewer when a cluster would hold less than two batches."""
    prompts_per_step: int = 32
    """b, prompts of one batch (paper: 128)."""
    without_labels: Literal["length", "random"] = "length"
    """Order within a cluster when there are no labels: length (short first, a stand-in) or random."""
    keep: float | None = None
    """Share of rows kept by the quality filter, in (0, 1]; None: nothing is filtered."""
    policy: str | None = None
    """Model that will be trained, folder or hub name: its tokenizer measures the prompts."""
    max_prompt_tokens: int | None = None
    """Longest prompt that the trainer takes, in tokens of --policy with its chat template; longer ones are never planned."""
    keep_unverifiable: bool = False
    """Plan rows whose answer the checker cannot read, instead of setting them aside."""
    seed: int = 0
    """Base seed of fits and orders."""

    def __post_init__(self) -> None:
        """Raises ValueError with the option and the fix."""
        super().__post_init__()
        at_least(self, prompts_per_step=2, retained_latents=1, clusters=1, max_prompt_tokens=1)
        limits = "--policy and --max-prompt-tokens go together: the model whose tokenizer counts, and the trainer's limit"
        require((self.policy is None) == (self.max_prompt_tokens is None), limits)
        low, high = self.label_range or (0.0, 1.0)
        require(low < high, f"--label-range {low:g} {high:g}: the first number must be the smaller one")
        share, rated = self.keep is None or 0 < self.keep <= 1, self.keep is None or self.fields.quality is not None
        require(share, f"--keep {self.keep} must lie above 0 and at most at 1: it is the share of rows that is kept")
        require(rated, "--keep needs quality labels: name their field with --quality")
        require(self.without_labels in ("length", "random"), f"without_labels={self.without_labels!r}: choose length or random")

    @property
    def swapped_per_batch(self) -> int:
        """h, samples that a batch exchanges with its partner: one of 16 (paper: 8 of 128)."""
        return max(1, self.prompts_per_step // 16)

    @property
    def shares(self) -> bool:
        """Whether the labels are a `SHARE_FIELD`, however the objects around it are called."""
        return (self.fields.labels or "").rpartition(".")[2].lower() == SHARE_FIELD

    @property
    def turned(self) -> bool:
        """Whether a larger label means easier, so that labels are turned round."""
        return self.fields.labels is not None and (self.larger_is_easier or self.shares)

    @property
    def allowed_labels(self) -> tuple[float, float] | None:
        """Range that labels must lie in, or None."""
        return (0.0, 1.0) if self.label_range is None and self.shares else self.label_range


@dataclass(frozen=True)
class SAEConfig:
    """Everything that decides the SAE beside model and text."""

    tokens: int
    """Activation vectors that it is trained on."""
    latents: int | None = None
    """F, width of the SAE; None: 64 times the model's width, as the paper's (section C.1)."""
    k: int = 50
    """Active latents a token (not stated in the paper; ours: the published SAE's)."""
    learning_rate: float = 3e-4
    """Of Adam, falling linearly to a tenth over the last fifth (not stated in the paper; ours: SAELens' default)."""
    vectors_per_step: int = 4096
    """Vectors of one optimiser step."""
    context: int = 1024
    """Tokens of a block; documents are joined and cut (not stated in the paper; ours)."""
    blocks_per_pass: int = 8
    """Blocks of one forward pass."""
    buffer_vectors: int = 131_072
    """Vectors that are mixed before they are served; half of them stay."""
    heldout_tokens: int = 100_000
    """The first vectors of the text, which measure the SAE and are never trained on."""
    checkpoint_every: int = 10_000_000
    """Vectors between checkpoints."""
    seed: int = 0
    """Of weights and mixing."""

    def __post_init__(self) -> None:
        """Raises ValueError with the option and the fix."""
        counts = ("latents", "k", "vectors_per_step", "blocks_per_pass", "heldout_tokens", "checkpoint_every")
        at_least(self, **dict.fromkeys(counts, 1), context=2)
        at_least(self, tokens=self.vectors_per_step, buffer_vectors=2 * self.vectors_per_step)
        require(self.latents is None or self.k <= self.latents, f"k={self.k} must be at most latents={self.latents}")


@dataclass(frozen=True)
class Options:
    """What a run on published data may be told: its sets, models and launcher; None keeps the profile's own."""

    data: str | None = None
    """Folder that holds every published set as OWNER/NAME; else the hub, at pinned revisions."""
    revision: tuple[str, ...] = ()
    """Commit hashes of sets that are not pinned yet, as SET=HASH."""
    skip_bad_rows: bool = False
    """Leave malformed rows out and list them, instead of stopping."""
    reader: str | None = None
    """Model that reads the data: folder or hub name."""
    layer: int | None = None
    """Block whose residual stream the SAE reads, 1 is the first."""
    sae: str | None = None
    """FOLDER saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID."""
    device: str | None = None
    """Where the reader runs: cpu, cuda or cuda:N."""
    policy: str | None = None
    """Policy that is trained: folder or hub name."""
    planned: str | None = None
    """target: DeepMath alone; all: as many samples of the noisy pool, by the quality filter."""
    arms: tuple[str, ...] | None = None
    """Arms to train, of grpo, dapo, diff, saerl, saerl_dapo, adarft and gainrl."""
    steps: int | None = None
    """Optimiser steps of a run."""
    launch: str | None = None
    """Command that starts the processes of a run, such as 'accelerate launch --config_file FILE'."""
    micro_batch: int | None = None
    """Rollouts of one forward pass of one training process."""
    vllm: bool = False
    """Rollouts of training by vLLM."""
    bf16: bool = False
    """bfloat16: mixed precision in training, weights in encoding and evaluation; needs a GPU."""
    export_to: tuple[str, ...] | None = None
    """Other trainers that every plan is exported for, of trl, verl, nemo-rl and prime-rl."""

    @property
    def given(self) -> dict[str, Any]:
        """Option -> value of those that differ from the default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def apply(self, profile: Profile) -> Profile:
        """The profile with these options. Raises ValueError for an option of a profile that draws a world."""
        given = self.given
        if not given:
            return profile
        if profile.published is None:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{options}: profile {profile.name} draws its own data; leave it out, or use --profile paper")
        require(self.steps is None or self.steps >= 1, f"--steps {self.steps} must be at least 1")
        parts = dict[str, dict[str, Any]]()
        for part, pairs in REACHES.items():
            named = [(name, option or name) for name, _, option in (pair.partition("=") for pair in pairs.split())]
            parts[part] = {name: given[option] for name, option in named if option in given}
        for word in self.revision:
            require(all(word.partition("=")), f"--revision {word!r}: write SET=HASH, such as amc23=0123...")
        if self.revision:
            parts["published"]["revisions"] = tuple(tuple(word.split("=", 1)) for word in self.revision)
        if self.reader:
            parts["reader"].setdefault("revision", None)
        records = {part: replace(getattr(profile, part), **values) for part, values in parts.items() if part != "profile"}
        return replace(profile, **records, **parts["profile"])

    def text(self, name: str) -> str:
        """The value of a notebook's `profile`: the name and, behind it, the options that were given, as JSON."""
        return f"{name} {json.dumps(self.given)}" if self.given else name


REACHES = {
    "published": "folder=data skip_bad_rows",
    "reader": "model=reader layer sae device bf16",
    "train": "micro_batch vllm bf16",
    "profile": "policy planned arms train_steps=steps launch exports=export_to",
}
"""Record of a profile -> its fields that options set, as FIELD or FIELD=OPTION."""
