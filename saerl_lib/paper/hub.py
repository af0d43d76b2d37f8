"""Repositories of the Hugging Face hub that the paper's run reads, each with its pinned revision where one is known.

A revision stands here only when a public address of that repository shows it in full; None is printed as "not pinned yet".
Sizes and row counts are those of the data set cards unless a note says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HubModel:
    """A decoder-only LM by the fields of its config.json, from which parameters and FLOPs are computed."""

    repository: str
    """owner/name on the hub."""
    layers: int
    """Blocks."""
    width: int
    """Width D of the residual stream."""
    feed_forward: int
    """Inner width of a block's gated MLP."""
    heads: int
    """Query heads."""
    key_value_heads: int
    """Key and value heads (grouped-query attention)."""
    head_width: int
    """Width of one head."""
    vocabulary: int
    """Rows of the embedding."""
    tied_embedding: bool
    """Whether the output head is the embedding."""
    query_bias: bool
    """Biases of query, key and value (Qwen2); otherwise norms of query and key a head (Qwen3)."""
    revision: str | None = None
    """Commit hash of the repository; None: not pinned yet."""


@dataclass(frozen=True)
class HubData:
    """A data set of the hub and, where one exists, its local copy in the folder named by `SAERL_DATA_DIR`."""

    name: str
    """Key of `saerl_lib.paper.rows.READERS`."""
    repository: str
    """owner/name on the hub."""
    split: str
    """Split that is read."""
    rows: int
    """Rows of that split."""
    download_bytes: int
    """Size of the files of that split."""
    configuration: str | None = None
    """Configuration (subset) of the repository."""
    data_file: str | None = None
    """The one file to read, for a repository of plain JSON lines."""
    local_file: str | None = None
    """File of the local copy."""
    revision: str | None = None
    """Commit hash of the repository; None: not pinned yet."""
    note: str = ""
    """What differs from the paper or is not known."""

    def __post_init__(self) -> None:
        if self.revision is not None and len(self.revision) != 40:
            raise ValueError(f"{self.repository}: revision {self.revision!r} is no 40-digit commit hash; write all of it or None")


QWEN25_MATH_15B = HubModel("Qwen/Qwen2.5-Math-1.5B", 28, 1536, 8960, 12, 2, 128, 151_936, True, True)
QWEN25_MATH_7B = HubModel("Qwen/Qwen2.5-Math-7B", 28, 3584, 18_944, 28, 4, 128, 152_064, False, True)
QWEN3_17B = HubModel("Qwen/Qwen3-1.7B", 28, 2048, 6144, 16, 8, 128, 151_936, True, False)
QWEN3_17B_BASE = HubModel("Qwen/Qwen3-1.7B-Base", 28, 2048, 6144, 16, 8, 128, 151_936, True, False)

DEEPMATH = HubData(
    "deepmath", "zwhe99/DeepMath-103K", "train", 103_022, 2_136_106_260, local_file="deepmath_18k.jsonl.gz",
    note="cards of the data set and of its copies say 103,022 or 103,110 rows; the paper uses 103,022. "
    "The local copy holds 18,329 rows without topics and R1 solutions",
)  # fmt: skip
NUMINA = HubData(
    "numinamath", "AI-MO/NuminaMath-1.5", "train", 896_215, 531_355_727, revision="9a5aae8427cb65ac9a8bb3136ffb1d554b70c478",
    note="the paper takes 107,021 of these rows and does not say which",
)  # fmt: skip
PRM800K = HubData(
    "prm800k", "tasksource/PRM800K", "train", 97_782, 456_000_000, data_file="phase2_train.jsonl",
    revision="547b19506677a59037ee888838834b65e9b1ddd4",
    note="OpenAI's own file of phase 2; its rows are counted by a public derivative; the paper names no repository or phase",
)  # fmt: skip
DEEPSCALER = HubData(
    "deepscaler", "agentica-org/DeepScaleR-Preview-Dataset", "train", 40_315, 21_500_000,
    local_file="deepscaler_pass_rate.jsonl.gz", note="the local copy holds 29,405 rows with pass rates",
)  # fmt: skip
TRAINING_DATA = (DEEPMATH, NUMINA, PRM800K, DEEPSCALER)

BENCHMARKS = (
    HubData("aime24", "HuggingFaceH4/aime_2024", "train", 30, 81_670, local_file="eval_aime24.jsonl.gz"),
    HubData("amc23", "math-ai/amc23", "test", 40, 11_900, local_file="eval_amc23.jsonl.gz"),
    HubData("gsm8k", "openai/gsm8k", "test", 1319, 420_000, configuration="main", local_file="gsm8k_test.jsonl.gz"),
    HubData("math500", "HuggingFaceH4/MATH-500", "test", 500, 450_000, local_file="eval_math500.jsonl.gz"),
    HubData("minerva", "math-ai/minervamath", "test", 272, 120_181, local_file="eval_minerva_math.jsonl.gz"),
    HubData(
        "olympiadbench", "Hothan/OlympiadBench", "train", 674, 1_000_000, configuration="OE_TO_maths_en_COMP",
        local_file="eval_olympiadbench.jsonl.gz", note="674 rows here, 675 in the copy of Qwen2.5-Math's evaluation",
    ),
)  # fmt: skip
"""The paper's six sets; it names no repository, so these are ours. Sizes below 1 MB are rounded."""
