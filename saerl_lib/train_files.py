"""What `train` leaves on the disk while it runs: checkpoints to go on from, and weights that must be whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from saerl_lib.artifacts import ArtifactError

WHOLE_WEIGHTS = (
    "the launcher's configuration shards the weights and does not gather them to save: set fsdp_state_dict_type: FULL_STATE_DICT "
    "(FSDP), or stage3_gather_16bit_weights_on_model_save: true (DeepSpeed ZeRO-3; zero3_save_16bit_model in accelerate's file)"
)


def require_gathered(state: Any) -> None:
    """Raise ArtifactError when accelerate's `state` names a setting under which no weights would be saved as safetensors."""
    fsdp = getattr(state, "fsdp_plugin", None)
    if fsdp is not None and "FULL_STATE_DICT" not in str(fsdp.state_dict_type):
        raise ArtifactError(WHOLE_WEIGHTS)
    deepspeed = getattr(state, "deepspeed_plugin", None)
    if deepspeed is None or deepspeed.zero_stage != 3:
        return
    zero = deepspeed.deepspeed_config.get("zero_optimization", {})
    if not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise ArtifactError(WHOLE_WEIGHTS)


def require_weights(folder: Path) -> None:
    """Remove `folder` and raise ArtifactError unless safetensors were saved there."""
    if not any(folder.glob("*.safetensors")):
        shutil.rmtree(folder, ignore_errors=True)
        raise ArtifactError(f"no *.safetensors were saved for {folder}; {WHOLE_WEIGHTS}")


def step_of(checkpoint: Path) -> int:
    """Steps of the optimiser before a checkpoint."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def resume_point(folder: Path, total: int) -> Path | None:
    """The last checkpoint, None without one; that of the last step counts only where the final weights were written too.

    Nothing is removed: every process chooses for itself, at its own time.
    """
    done = (folder / "final").is_dir()
    found = [p for p in _checkpoints(folder / "checkpoints") if _complete(p) and (done or step_of(p) < total)]
    return max(found, key=step_of, default=None)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name.rsplit("-", 1)[1].isdigit())


def _complete(checkpoint: Path) -> bool:
    """Whether the trainer's state was written, which comes after weights and optimiser."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def remove_broken_checkpoints(folder: Path) -> None:
    """Remove checkpoints that a kill left half written; for one process, once all have chosen theirs."""
    for checkpoint in _checkpoints(folder):
        if not _complete(checkpoint):
            shutil.rmtree(checkpoint)
