"""Data sets and models of the Hugging Face hub that the paper's run reads, each with its pinned revision where one is known.

A revision stands here only when public sources show it in full with the repository's name; None is printed as "not pinned
yet". Standard library alone: the plan of profile paper is printed before any package is installed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class HubData:
    """A data set of the hub."""

    name: str
    repository: str
    """owner/name on the hub."""
    split: str
    rows: int
    download_bytes: int
    """Size of the files of that split."""
    configuration: str | None = None
    data_file: str | None = None
    """The one file to read, for a repository of plain JSON lines."""
    revision: str | None = None
    """Commit hash of the repository; None: not pinned yet."""
    note: str = ""
    """What differs from the paper or is not known."""

    def __post_init__(self) -> None:
        if self.revision is not None and len(self.revision) != 40:
            raise ValueError(f"{self.repository}: revision {self.revision!r} is no 40-digit commit hash; write all of it or None")


TRAINING_DATA = (
    HubData(
        "deepmath", "zwhe99/DeepMath-103K", "train", 103_022, 2_136_106_260, revision="5cf055d1fe3d7a2eb19719ac020211469736ae44",
        note="an early revision has 103,110 rows, this one the paper's 103,022; "
        "the local copy holds 18,329 rows without topics and R1 solutions",
    ),
    HubData(
        "numinamath", "AI-MO/NuminaMath-1.5", "train", 896_215, 531_355_727, revision="9a5aae8427cb65ac9a8bb3136ffb1d554b70c478",
        note="the paper takes 107,021 of these rows and does not say which",
    ),
    HubData(
        "prm800k", "tasksource/PRM800K", "train", 97_782, 456_000_000, data_file="phase2_train.jsonl",
        revision="547b19506677a59037ee888838834b65e9b1ddd4",
        note="OpenAI's own file of phase 2; its rows are counted by a public derivative; the paper names no repository or phase",
    ),
    HubData(
        "deepscaler", "agentica-org/DeepScaleR-Preview-Dataset", "train", 40_315, 21_500_000,
        revision="b6ae8c60f5c1f2b594e2140b91c49c9ad0949e29", note="the local copy holds 29,405 rows with pass rates",
    ),
)  # fmt: skip
"""The paper's training data."""
BENCHMARKS = (
    HubData("aime24", "HuggingFaceH4/aime_2024", "train", 30, 81_670, revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a"),
    HubData("amc23", "math-ai/amc23", "test", 40, 11_900),
    HubData(
        "gsm8k", "openai/gsm8k", "test", 1319, 420_000, configuration="main", revision="740312add88f781978c0658806c59bc2815b9866",
    ),
    HubData("math500", "HuggingFaceH4/MATH-500", "test", 500, 446_564, revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
    HubData("minerva", "math-ai/minervamath", "test", 272, 120_181),
    HubData(
        "olympiadbench", "Hothan/OlympiadBench", "train", 674, 1_000_000, configuration="OE_TO_maths_en_COMP",
        note="674 rows here, 675 in the copy of Qwen2.5-Math's evaluation",
    ),
)  # fmt: skip
"""The paper's six sets; it names no repository, so these are ours. The sizes of GSM8K and OlympiadBench are rounded."""

SETS: dict[str, HubData] = {data.name: data for data in (*TRAINING_DATA, *BENCHMARKS)}
"""Every published set by its name."""


@dataclass(frozen=True)
class HubModel:
    """A model of the hub."""

    repository: str
    """owner/name on the hub."""
    revision: str | None
    """Commit hash of the repository; None: not pinned yet."""
    parameters: int
    """All weights, a tied embedding counted once."""
    gpus: int = 1
    """GPUs of 80 GB that hold one run of the policy at the paper's settings (docs/paper_scale.md)."""


POLICIES = (
    HubModel("Qwen/Qwen2.5-Math-1.5B", "4a83ca6e4526a4f2da3aa259ec36c259f66b2ab2", 1_543_714_304),
    HubModel("Qwen/Qwen2.5-Math-7B", "b101308fe89651ea5ce025f25317fea6fc07e96e", 7_615_616_512, gpus=4),
)  # fmt: skip
"""The paper's policies."""
QWEN3_17B = HubModel("Qwen/Qwen3-1.7B", "70d244cc86ccca08cf5af4e1e306ecf908b1ad5e", 1_720_574_976)
QWEN3_17B_BASE = replace(QWEN3_17B, repository="Qwen/Qwen3-1.7B-Base", revision="ea980cb0a6c2ae4b936e82123acc929f1cec04c1")
MODELS = {model.repository: model for model in (*POLICIES, QWEN3_17B, QWEN3_17B_BASE)}
"""Every model by its repository."""


def model_folder(name: str, option: str) -> Path:
    """A folder with the model: the given one, or the hub's snapshot at its pinned revision, without pickles or code.

    Raises ValueError, naming `option`, when the folder holds no configuration, weights or tokenizer, for a name that is no
    folder and not in `MODELS`, and when the snapshot cannot be fetched.
    """
    folder = Path(name)
    if folder.is_dir():
        for needed in ("config.json", "*.safetensors", "tokenizer.json"):
            if not any(folder.glob(needed)):
                raise ValueError(f"{option} {name}: no {needed} there; name a folder in Hugging Face format with safetensors")
        return folder
    if name not in MODELS:
        known = " or ".join(MODELS)
        raise ValueError(f"{option} {name}: no such folder; name a folder in Hugging Face format, or {known}")
    from huggingface_hub import snapshot_download

    try:
        files = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # no pickle, no code
        return Path(snapshot_download(name, revision=MODELS[name].revision, allow_patterns=files))
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        fix = f"set HF_HUB_OFFLINE=0 to allow downloads, or pass {option} FOLDER"
        raise ValueError(f"{name} cannot be fetched ({reason}); {fix}") from error
