"""Settings of a plan of one's own data; a bad combination raises before a file is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from saerl_lib.data.rows import SHARE_FIELD, Fields

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
        from saerl_lib.encode.models import ReaderSpec  # torch is slow to import, and a first look needs none

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
