"""Where the path keeps its stages, and which steps may compute: the others are only read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, get_or_compute, is_complete, module_of, stage_key
from saerl_lib.config import Profile
from saerl_lib.paper.config import PaperConfig

STEPS = ("data", "encode", "plan", "measure", "train", "evaluate", "report")
"""In the order in which data flow."""
PROFILE = Profile(name="paper")
"""Only its name is read here: every stage carries the settings that decide it."""


@dataclass(frozen=True)
class Home:
    """One run of the path."""

    config: PaperConfig
    steps: frozenset[str]
    """Steps that may compute what is missing."""
    say: Callable[[str], None] = lambda text: None
    """Told every stage."""

    @property
    def folder(self) -> Path:
        """Stages, training runs and tables."""
        return paths.profile_dir(PROFILE.name)

    def stage(
        self, step: str, name: str, settings: Mapping[str, Any], compute: Callable[[Path], None],
        inputs: tuple[Stage, ...] = (),
    ) -> Stage:
        """The stage `name` of `step`, found or computed.

        Raises ArtifactError when it is not there and its step was not asked for.
        """
        if step not in self.steps and not is_complete(self.folder / name, stage_key(name, module_of(compute), settings, inputs)):
            raise missing(step, f"stage {name}")
        found = get_or_compute(PROFILE, name, settings, compute, inputs)
        if step in self.steps:
            self.say(f"{step}: {name} {'computed' if found.computed else 'found'}")
        return found


def missing(step: str, what: str) -> ArtifactError:
    """The error for something that an earlier step leaves."""
    fix = f"run `python -m saerl_lib paper {step}` with the same ones"
    return ArtifactError(f"{what} is missing or was made with other options: {fix}")
