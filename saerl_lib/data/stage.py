"""Stage `world`: every split of the embedded world as Parquet."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, to_dict
from saerl_lib.data.sample import read_samples, write_samples
from saerl_lib.data.splits import draw_world


def world_stage(profile: Profile) -> Stage:
    """Draw the world of a profile, one `<split>.parquet` a split."""

    def compute(folder: Path) -> None:
        for name, samples in draw_world(profile.world).items():
            write_samples(samples, folder / f"{name}.parquet")

    return get_or_compute(profile, "world", to_dict(profile.world), compute)


def split_table(world: Stage) -> pd.DataFrame:
    """One row a split: samples, leaf families, mean difficulty, share with a planted error."""
    rows = []
    for path in sorted(world.folder.glob("*.parquet")):
        samples = read_samples(path)
        rows.append(
            {
                "split": path.stem,
                "samples": len(samples),
                "leaf topics": len({s.topic for s in samples}),
                "mean difficulty": round(sum(s.difficulty for s in samples) / len(samples), 2),
                "planted errors": f"{sum(bool(s.flaw) for s in samples) / len(samples):.1%}",
            }
        )
    return pd.DataFrame(rows)
