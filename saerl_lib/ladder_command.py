"""`python -m saerl_lib ladder FILE`: the whole control ladder on one labelled file, with the readers of profile `method`."""

from __future__ import annotations

from pathlib import Path

from saerl_lib import paths
from saerl_lib.artifacts import provenance, write_json
from saerl_lib.config import Profile, content_hash, get_profile, to_dict
from saerl_lib.data.published import load_labelled
from saerl_lib.data.sample import normalise
from saerl_lib.encode.kinds_stage import ladder_reader, sae_kinds_stage
from saerl_lib.encode.real_stage import corpus_keys, held_out_keys, text_model_stage
from saerl_lib.notebooks import UserError
from saerl_lib.properties.ladder import encode_tasks, ladder
from saerl_lib.properties.tasks import tasks_of_file
from saerl_lib.report.figures import draw
from saerl_lib.report.tables import write_csv


def require_method(name: str) -> Profile:
    """A profile that has the full ladder. Raises UserError for one that has not."""
    profile = get_profile(name)
    if profile.method is None:
        raise UserError(f"profile {name!r} computes no ladder; use --profile method, or smoke to try it in small")
    return profile


def run_ladder(file: Path, profile_name: str) -> int:
    """Every label of `file` that can be read becomes a task; table, figure and predictions go to a folder of their own."""
    profile = require_method(profile_name)
    data = load_labelled(file)
    tasks = tasks_of_file(data, profile.method, held_out_keys(), lambda line: print(line, flush=True))
    read = corpus_keys(profile.method)
    for task in tasks:
        seen = sum(normalise(s.prompt) in read for s in task.test)
        print(f"{task.target}: {len(task.train)} training and {len(task.test)} test problems; the LM and the SAEs may have read "
              f"the text of {seen} of the latter, without labels", flush=True)  # fmt: skip
    text_model = text_model_stage(profile)
    reader = ladder_reader(profile, sae_kinds_stage(profile, "text", text_model), text_model)
    folder = paths.profile_dir(profile.name) / "files" / data.name
    folder.mkdir(parents=True, exist_ok=True)
    blocks = encode_tasks(tasks, profile, reader, folder)
    table, predictions = ladder(tasks, blocks, profile.properties, profile.seed, workers=profile.method.workers)
    write_csv(table, "probe_ladder", folder)
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    write_json(folder / "provenance.json", {"file": file.name, "settings": content_hash(to_dict(profile)), **provenance()})
    shown = table[table["metric"].isin(("accuracy", "spearman", "roc_auc", "pearson"))]
    print(shown.pivot_table(index="features", columns=["target", "metric"], values="value", sort=False).round(3).to_string())
    print(f"table, figure and predictions: {draw('probe_ladder', folder, folder).parent}")
    return 0
