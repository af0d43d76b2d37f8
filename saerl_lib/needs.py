"""What a run needs: sets and models of the hub, the locked packages, a machine; and the plan of profile paper.

`python -m saerl_lib.needs --profile paper --plan-only` prints the plan, `python -m saerl_lib.needs --packages` checks the lock:
both by the standard library alone, before any package is installed, and nothing is downloaded. The sets are rows of
`data/hub.csv`; the paper names no repository of its six evaluation sets, so these are ours. A revision stands there only when
public sources show it in full. The estimates are fixed numbers of `data/paper_plan.txt`; docs/paper_scale.md has their formulas.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from saerl_lib import paths
from saerl_lib.config import PLANS, Profile, get_profile

DATA = Path(__file__).parent / "data"
LOCK, MINIMUM_PYTHON = paths.ROOT / "requirements.lock", (3, 11)


# Sets and models of the hub.


@dataclass(frozen=True)
class HubData:
    """A data set of the Hugging Face hub."""

    name: str
    repository: str
    """owner/name on the hub."""
    split: str
    rows: int
    download_bytes: int
    """Size of the files of that split; those of GSM8K and OlympiadBench are rounded."""
    configuration: str | None = None
    data_file: str | None = None
    """The one file to read, for a repository of plain JSON lines."""
    revision: str | None = None
    """Commit hash of the repository; None: not pinned yet."""
    note: str | None = None
    """What differs from the paper or is not known."""


@dataclass(frozen=True)
class HubModel:
    """A model of the hub."""

    repository: str
    """owner/name on the hub."""
    revision: str
    """Commit hash of the repository."""
    parameters: int
    """All weights, a tied embedding counted once."""
    gpus: int = 1
    """GPUs of 80 GB that hold one run of the policy at the paper's settings (docs/paper_scale.md)."""


def _read_sets() -> dict[str, HubData]:
    with (DATA / "hub.csv").open(newline="", encoding="utf-8") as handle:
        found = [{name: value or None for name, value in row.items()} for row in csv.DictReader(handle)]
    counts = [{name: int(row[name] or 0) for name in ("rows", "download_bytes")} for row in found]
    return {row["name"]: HubData(**row | count) for row, count in zip(found, counts, strict=True)}  # type: ignore[arg-type]


SETS = _read_sets()
"""Every published set by its name: the paper's training data, then its six evaluation sets."""
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


# The packages.


def read_lock(path: Path = LOCK) -> dict[str, str]:
    """Locked version by name as indexes compare it (PEP 503). Raises ValueError for a line that does not read `name==version`."""
    locked: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+_-]+)", line)
        if match is None:
            raise ValueError(f"{path.name} line {number}: {line!r} is not of the form name==version")
        locked[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return locked


def package_faults(path: Path = LOCK) -> tuple[str, ...]:
    """One sentence a locked package that is absent or has another version; a local suffix such as `+cpu` is ignored. Raises what
    `read_lock` raises."""
    wrong = []
    for name, version in read_lock(path).items():
        try:
            have = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} {version} is not installed")
            continue
        if have.split("+")[0] != version.split("+")[0]:
            wrong.append(f"{name} is {have}, locked is {version}")
    return tuple(wrong)


def check_packages(path: Path = LOCK) -> int:
    """0 when this Python is new enough and holds the lock, else 1 with the first five differences on stdout."""
    if sys.version_info < MINIMUM_PYTHON:
        print(f"Python {sys.version.split()[0]} is older than {'.'.join(map(str, MINIMUM_PYTHON))}")
        return 1
    try:
        wrong = package_faults(path)
    except (OSError, ValueError) as error:
        wrong = (f"cannot read the lock: {error}",)
    for line in (*wrong[:5], *([f"and {len(wrong) - 5} more"] if len(wrong) > 5 else [])):
        print(line)
    return 1 if wrong else 0


# This machine.

SAE = ("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50, layer27 alone", 537_010_176.0)
"""What SAELens' registry reads for the profile's SAE, and its bytes; not pinned, SAELens downloads the newest revision."""
GPU_BYTES = 80e9
"""Memory of one H100 or A100; the paper does not say which size it used."""


def list_gpus() -> tuple[tuple[str, float], ...]:
    """Name and memory in bytes of the GPUs that nvidia-smi lists; empty without it or when it does not answer in 3 seconds."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=3, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.rsplit(",", 1) for line in listed.splitlines() if "," in line]
    return tuple((name.strip(), float(mib) * 2**20) for name, mib in rows if mib.strip().isdigit())


def downloads(profile: Profile) -> list[tuple[str, float, str | None]]:
    """(repository, bytes, revision) of everything that the plan would fetch; weights count two bytes a parameter."""
    config, reader = profile.published, profile.reader
    assert config is not None
    pinned, models = dict(config.revisions), [*POLICIES, *([MODELS[reader.model]] if reader.model in MODELS else [])]
    found = [(model.repository, 2.0 * model.parameters, model.revision) for model in models]
    if reader.sae.startswith("saelens:"):
        found.append((*SAE, None))
    if config.folder is None:
        found += [(d.repository, float(d.download_bytes), pinned.get(d.name, d.revision)) for d in SETS.values()]
    return found


def missing(profile: Profile, need: int = POLICIES[-1].gpus) -> list[str]:
    """One sentence for each thing that this machine lacks for a run on `need` GPUs and data of the hub; no network is tried."""
    gpus, packages = list_gpus(), package_faults()
    here = ", ".join(f"{name} ({size(memory)})" for name, memory in gpus) or "none found"
    open_sets = {name for name, _, pin in downloads(profile) if pin is None}
    bare = [data.name for data in SETS.values() if data.repository in open_sets]
    found = {
        f"GPU: {need} of {size(GPU_BYTES)} for the largest stage; here: {here}":
            sum(memory >= 0.95 * GPU_BYTES for _, memory in gpus) < need,
        f"packages: {'; '.join(packages[:3])}; {len(packages)} in all differ from requirements.lock": packages,
        f"revisions: not pinned yet, pass --revision SET=HASH for {', '.join(bare)}": bare,
    }  # fmt: skip
    return [sentence for sentence, lacks in found.items() if lacks]


def require_machine(profile: Profile) -> None:
    """Raises ValueError that lists what is wrong with local stand-ins or, where some are not given, what the machine lacks."""
    config, reader = profile.published, profile.reader
    if config is None:
        return
    from saerl_lib.data.published import sets_to_read  # needs packages, the plan does not

    def require_sae() -> None:
        file = "config.json" if reader.sae.startswith("opensae:") else "cfg.json"
        if not (Path(reader.sae.removeprefix("opensae:")) / file).is_file():
            known = "a folder saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID"
            raise ValueError(f"--sae {reader.sae}: no {file} there; name {known}")

    checks = {
        "--data": (config.folder is not None, lambda: sets_to_read(profile)),
        "--reader": (reader.model not in MODELS, lambda: model_folder(reader.model, "--reader")),
        "--sae": (not reader.sae.startswith("saelens:"), require_sae),
        "--policy": (profile.policy not in MODELS, lambda: model_folder(profile.policy, "--policy")),
    }
    problems = []
    for check in (check for local, check in checks.values() if local):
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    absent = [option for option, (local, _) in checks.items() if not local]
    lacks = missing(profile, MODELS.get(profile.policy, POLICIES[0]).gpus) if absent else []
    if lacks:
        raise ValueError(
            f"profile {profile.name!r} takes models and data from the Hugging Face Hub and needs GPUs; this machine lacks\n"
            f"{_listed(lacks)}\n--plan-only prints the whole plan. On local stand-ins it runs anywhere; not given: "
            + ", ".join(absent)
        )


# The plan as text.


def size(count: float) -> str:
    """Bytes as people read them, in powers of ten.

    >>> size(2_136_106_260), size(81_670), size(80e9)
    ('2.1 GB', '82 kB', '80 GB')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.{int(count < 10 * factor)}f} {unit}"
    return f"{count:.0f} B"


def _listed(sentences: Sequence[str]) -> str:
    return "\n".join(f"  - {sentence}" for sentence in sentences)


def run_plan(profile: str, rest: Sequence[str] = ()) -> int:
    """Print the plan of profile `paper`, with what is missing here. Raises ValueError for another profile or a further option."""
    if profile != "paper":
        raise ValueError(f"--plan-only belongs to --profile paper; profile {profile!r} has no plan, run it without --plan-only")
    if rest:
        raise ValueError(f"--plan-only takes no further option; leave out {' '.join(rest)}")
    chosen = get_profile(profile)
    fetched = downloads(chosen)
    lacks = [*missing(chosen), "vLLM is not locked here: without it rollouts are several times slower"]
    print((DATA / "paper_plan.txt").read_text(encoding="utf-8").format(
        profile=chosen, reader=chosen.reader, policies=", ".join(model.repository for model in POLICIES),
        arms=", ".join(chosen.arms), known=", ".join(PLANS), size=size(sum(row[1] for row in fetched)),
        downloads="\n".join(f"  {name:56s}  {size(count):6s}  {pin or 'not pinned yet'}" for name, count, pin in fetched),
        notes=_listed([f"{data.repository}: {data.note}" for data in SETS.values() if data.note]), missing=_listed(lacks),
    ))  # fmt: skip
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m saerl_lib.needs`: needs no package; returns 0, or 1 with a message."""
    parser = argparse.ArgumentParser(prog="python -m saerl_lib.needs", description="the plan of profile paper")
    parser.add_argument("--packages", action="store_true", help="whether the locked packages are installed")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--plan-only", action="store_true", help="what is done without --packages")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.packages:
        return check_packages()
    try:
        return run_plan(arguments.profile, [word for word in rest if word != "--debug"])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
