"""Tables of the control ladder, computed in a profile with a `method`, else as profile `method` committed them (notebook 03)."""

from __future__ import annotations

import pandas as pd

from saerl_lib import paths
from saerl_lib.artifacts import Stage
from saerl_lib.config import Profile
from saerl_lib.data.published import evaluation_keys
from saerl_lib.encode.kinds_stage import sae_kinds_stage
from saerl_lib.encode.real_stage import load_set, real_folder, text_model_stage
from saerl_lib.encode.sentence_stage import sentence_reader
from saerl_lib.properties.ladder_stage import GROUPS, has_real_data, ladder_stages


def _committed(name: str) -> pd.DataFrame:
    return pd.read_csv(paths.FIGURES / "data" / f"{name}.csv")


def full_ladder(profile: Profile, world: Stage) -> pd.DataFrame:
    """Rows of probe_ladder.csv."""
    if profile.method is None:
        return _committed("probe_ladder")
    return pd.concat([pd.read_parquet(s.path("ladder.parquet")) for s in ladder_stages(profile, world)], ignore_index=True)


def ladder_saes(profile: Profile) -> pd.DataFrame:
    """Rows of ladder_saes.csv: explained variance, L0 and dead share of each SAE, on tokens it was not trained on."""
    if profile.method is None:
        return _committed("ladder_saes")
    stages = {"world encoder": sae_kinds_stage(profile, "world", None)}
    if has_real_data(profile):
        stages["LM of real text"] = sae_kinds_stage(profile, "text", text_model_stage(profile))
        sentence = sentence_reader(profile)
        stages |= {"sentence encoder": sentence[1]} if sentence else {}
    tables = [pd.read_parquet(stage.path("quality.parquet")).assign(model=name) for name, stage in stages.items()]
    columns = ["model", "features", "seed", "explained_variance", "l0", "dead_share", "n_tokens"]
    return pd.concat(tables, ignore_index=True)[columns]


def overlap_table(profile: Profile) -> pd.DataFrame:
    """Rows of real_overlap.csv: exact overlap of every set with every evaluation set by normalised question."""
    if not has_real_data(profile):
        return _committed("real_overlap")
    evaluation = {**evaluation_keys(real_folder()), "math_test": set(load_set("math_test").keys)}
    rows = []
    for files in GROUPS.values():
        for name in files:
            keys = load_set(name).keys
            for other, questions in evaluation.items():
                if other != name:
                    rows.append((name, other, len(keys), sum(key in questions for key in keys)))
    return pd.DataFrame(rows, columns=["dataset", "evaluation_set", "n", "n_overlap"])
