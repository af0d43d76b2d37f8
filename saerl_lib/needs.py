"""What the paper's run would cost, what this machine lacks of it, and whether the locked packages are installed.

`python -m saerl_lib.needs --profile paper --plan-only` prints the plan, `python -m saerl_lib.needs --packages` checks the lock:
both by the standard library alone, before any package is installed, and nothing is downloaded. The estimates are fixed numbers of
`data/paper_plan.txt`; docs/paper_scale.md has their formulas. Nothing of this was run at that scale.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from saerl_lib import paths
from saerl_lib.config import PLANS, Profile, get_profile
from saerl_lib.data.hub import BENCHMARKS, MODELS, POLICIES, SETS, TRAINING_DATA, HubModel, model_folder

LOCK, MINIMUM_PYTHON = paths.ROOT / "requirements.lock", (3, 11)
RUNS_OF_TABLE_4 = dict(zip(POLICIES, (7, 5), strict=True))
"""Policy -> main runs of the paper, one seed each: the rows of Table 4."""
SAE = ("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50, layer27 alone", 537_010_176.0)
"""What SAELens' registry reads for the profile's SAE, and its bytes; not pinned, SAELens downloads the newest revision."""
GPU_BYTES = 80e9
"""Memory of one H100 or A100; the paper does not say which size it used."""
KEPT_BYTES = 2 * 14 + 46 * 4
"""That a run leaves for each parameter: two checkpoints (bf16 and fp32 weights, Adam), and 46 fp32 weights to be evaluated."""


# The packages.


def read_lock(path: Path = LOCK) -> dict[str, str]:
    """Locked version by name as indexes compare it (PEP 503). Raises ValueError for a line that does not read `name==version`."""
    locked: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.split("#")[0].strip()
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+_-]+)", text)
        if text and match is None:
            raise ValueError(f"{path.name} line {number}: {text!r} is not of the form name==version")
        locked |= {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2]} if match else {}
    return locked


def package_faults(path: Path = LOCK) -> tuple[str, ...]:
    """One sentence a locked package that is absent or has another version; a local suffix such as `+cpu` is ignored.

    Of several installed versions the first on the import path counts, as for `import`. Raises what `read_lock` raises.
    """
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
    print("\n".join([*wrong[:5], *([f"and {len(wrong) - 5} more"] if len(wrong) > 5 else [])]), end="\n" if wrong else "")
    return 1 if wrong else 0


# This machine.


def list_gpus() -> tuple[tuple[str, float], ...]:
    """Name and memory in bytes of the GPUs that nvidia-smi lists; empty without it or when it does not answer in 3 seconds."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=3, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.rsplit(",", 1) for line in listed.splitlines() if "," in line]
    return tuple((name.strip(), float(mib) * 2**20) for name, mib in rows if mib.strip().isdigit())


def free_bytes(folder: Path) -> int:
    """Of the disk where a folder lies or will lie."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def downloads(profile: Profile, policies: Iterable[HubModel] = POLICIES) -> list[tuple[str, float, str | None]]:
    """(repository, bytes, revision) of everything that the plan would fetch; weights count two bytes a parameter."""
    config, reader = profile.published, profile.reader
    assert config is not None
    pinned, models = dict(config.revisions), [*policies, *([MODELS[reader.model]] if reader.model in MODELS else [])]
    found = [(model.repository, 2.0 * model.parameters, model.revision) for model in models]
    if reader.sae.startswith("saelens:"):
        found.append((*SAE, None))
    if config.folder is None:
        sets = (*TRAINING_DATA, *BENCHMARKS)
        found += [(d.repository, float(d.download_bytes), pinned.get(d.name, d.revision)) for d in sets]
    return found


def missing(profile: Profile, runs: Mapping[HubModel, int] = RUNS_OF_TABLE_4) -> list[str]:
    """One sentence for each thing that this machine lacks for runs of policies on hub models and data; the network is not tried.

    Raises ValueError for a damaged requirements.lock.
    """
    fetched, need, gpus, packages = downloads(profile, runs), max(model.gpus for model in runs), list_gpus(), package_faults()
    large = sum(memory >= 0.95 * GPU_BYTES for _, memory in gpus)
    here = ", ".join(f"{name} ({size(memory)})" for name, memory in gpus) or "none found"
    more = f"; and {len(packages) - 3} more" if len(packages) > 3 else ""
    weight, left = sum(row[1] for row in fetched), sum(n * model.parameters * KEPT_BYTES for model, n in runs.items())
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser().absolute()
    cache, free = free_bytes(home), free_bytes(paths.artifacts_root())
    bare = [data.name for data in SETS.values() if (data.repository, float(data.download_bytes), None) in fetched]
    found = {
        f"GPU: {need} of {size(GPU_BYTES)} for the largest stage; here: {here}": large < need,
        f"packages: {'; '.join(packages[:3])}{more} (requirements.lock)": packages,
        f"disk: {size(weight)} of downloads, {size(cache)} free in the cache": cache < weight,
        f"disk: {size(left)} of results, {size(free)} free where outputs go (SAERL_HOME)": free < left,
        f"revisions: not pinned yet, pass --revision SET=HASH for {', '.join(bare)}": bare,
    }  # fmt: skip
    return [sentence for sentence, lacks in found.items() if lacks]


# As text.


def size(count: float) -> str:
    """Bytes as people read them, in powers of ten.

    >>> size(2_136_106_260), size(81_670), size(80e9)
    ('2.1 GB', '82 kB', '80 GB')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            value = count / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of aligned columns, the last one ragged."""
    widths = [*(max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]), 0]
    return "\n".join("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def items(sentences: Iterable[str]) -> str:
    """Sentences as a list."""
    return "\n".join(f"  - {sentence}" for sentence in sentences)


def run_plan(profile: str, rest: Sequence[str] = ()) -> int:
    """Print the plan of profile `paper`: downloads, costs by stage, the paper's own figures, assumptions, what is missing here.

    Raises ValueError for another profile or a further option.
    """
    if profile != "paper":
        raise ValueError(f"--plan-only belongs to --profile paper; profile {profile!r} has no plan, run it without --plan-only")
    if rest:
        raise ValueError(f"--plan-only takes no further option; leave out {' '.join(rest)}")
    chosen = get_profile(profile)
    fetched = downloads(chosen)
    lacks = [*missing(chosen), "vLLM is not locked here: without it rollouts are several times slower"]
    print((Path(__file__).parent / "data" / "paper_plan.txt").read_text(encoding="utf-8").format(
        profile=chosen, reader=chosen.reader, policies=", ".join(model.repository for model in POLICIES),
        arms=", ".join(chosen.arms), known=", ".join(PLANS), size=size(sum(row[1] for row in fetched)),
        downloads=table([(name, size(count), revision or "not pinned yet") for name, count, revision in fetched]),
        notes=items(f"{data.repository}: {data.note}" for data in SETS.values() if data.note), missing=items(lacks),
    ))  # fmt: skip
    return 0


def require_machine(profile: Profile) -> None:
    """Raises ValueError that lists what is wrong with local stand-ins or, where some are not given, what the machine lacks."""
    config, reader = profile.published, profile.reader
    if config is None or reader is None:
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
    absent, count = [option for option, (local, _) in checks.items() if not local], len(profile.arms) * profile.train.seeds
    lacks = missing(profile, {MODELS.get(profile.policy, POLICIES[0]): count}) if absent else []
    if lacks:
        raise ValueError(
            f"profile {profile.name!r} takes models and data from the Hugging Face Hub and needs GPUs; this machine lacks\n"
            f"{items(lacks)}\n--plan-only prints the whole plan. On local stand-ins it runs anywhere; not given: "
            + ", ".join(absent)
        )


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
