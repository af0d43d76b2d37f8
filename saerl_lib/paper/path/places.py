"""Models, SAE and data sets of a run: the local stand-ins where they are given, else the hub at pinned revisions."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saerl_lib.artifacts import file_sha256
from saerl_lib.config import content_hash
from saerl_lib.data.published import SETS, HubData
from saerl_lib.data.sample import DataError
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.hub import HubModel

if TYPE_CHECKING:
    from saerl_lib.encode.models import ReaderSpec

REQUIRED = ("deepmath", "numinamath", "aime24", "amc23", "gsm8k", "math500", "minerva", "olympiadbench")
"""Sets that the path cannot do without."""
OPTIONAL = ("deepscaler", "prm800k")
"""Read where they are there: the out-of-domain regimes and the quality of solutions (paper, Tables 2 and 3)."""
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")
"""What is downloaded of a model: no pickle, no code."""


def data_set(config: PaperConfig, name: str) -> HubData:
    """The set `name` as it is to be read: a folder of `config.sources`, or the hub at its pinned revision."""
    data = SETS[name]
    if config.sources is not None:
        return dataclasses.replace(data, repository=str(Path(config.sources) / data.repository), revision=None)
    return dataclasses.replace(data, revision=dict(config.revisions).get(name, data.revision))


def sets_to_read(config: PaperConfig) -> tuple[str, ...]:
    """Names of the sets that are read.

    Raises DataError that lists every folder which is missing under `config.sources`, and every set without a revision.
    """
    unknown = [name for name, _ in config.revisions if name not in SETS]
    if unknown:
        raise DataError(f"--revision {unknown[0]}: no such set; choose from {', '.join(SETS)}")
    if config.sources is None:
        bare = [name for name in REQUIRED if data_set(config, name).revision is None]
        if bare:
            raise DataError(f"not pinned yet: {', '.join(bare)}; pass --revision SET=HASH for each, or --sources DIR")
        return (*REQUIRED, *OPTIONAL)
    absent = [SETS[name].repository for name in REQUIRED if not Path(data_set(config, name).repository).is_dir()]
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
