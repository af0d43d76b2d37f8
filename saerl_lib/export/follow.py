"""Did a trainer follow the plan? The first departure, and what was dropped, repeated or never planned.

A step of the trainer is compared with the same step of the plan; a log of several epochs repeats the plan.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

from saerl_lib.export.log import ConsumedLog, LogError
from saerl_lib.plan.batch_plan import BatchPlan

EPOCHS = 1000
"""A log of more repetitions of the plan than this is taken for a mistake."""


@dataclass(frozen=True)
class Departure:
    """The first place where log and plan differ; steps and slots count from 0."""

    step: int
    """Step of the trainer, on through all epochs."""
    slot: int
    planned: str | None
    """None when the step holds more prompts than planned."""
    consumed: str | None
    """None when the step, or the log, ends here."""


@dataclass(frozen=True)
class FollowReport:
    """The comparison of a log with a plan."""

    followed: bool
    steps_logged: int
    """Steps of the log, the last one perhaps unfinished."""
    steps_planned: int
    """T, of one epoch."""
    epochs: int
    """Times that the log would have to repeat the plan: steps logged / T, rounded up."""
    steps_kept: int
    """Steps of the log that hold the planned prompts in any order."""
    first: Departure | None
    """None when the plan was followed."""
    log_ended: bool
    """Whether all that was logged agrees with the plan, which goes on."""
    dropped: tuple[str, ...]
    """Planned ids that were never consumed, in plan order."""
    repeated: tuple[str, ...]
    """Ids consumed in more steps than there are epochs, in order of appearance."""
    unknown: tuple[str, ...]
    """Ids that are not in the plan, in order of appearance."""

    def followed_for(self, steps: int | None) -> bool:
        """Whether the log holds exactly `steps` steps of the plan, however often it starts again; None: whole passes."""
        if steps is None:
            return self.followed
        return (self.followed or self.log_ended) and self.steps_logged == self.steps_kept == steps

    @property
    def only_order_inside_steps(self) -> bool:
        """Whether every step holds the planned prompts and yet the plan was not followed to the letter."""
        return not self.followed and self.steps_kept == self.steps_planned * self.epochs


def follow(plan: BatchPlan, log: ConsumedLog, rollouts: int | None = None, any_slot: bool = False) -> FollowReport:
    """Compare what was consumed with the plan.

    Ids that follow themselves are rollouts of one prompt. With steps in the log (from 0, or from 1) they are compared
    step by step; else the prompts are cut into steps of b, or with `rollouts` (G) the lines into steps of b * G.
    `any_slot` compares the prompts of each step in any order, for logs whose rollouts are not in prompt order: a prompt with
    more rollouts than a group has, G or what most groups of the log have, was consumed more than once.
    Raises LogError when `rollouts` is below 1 or the log's steps go beyond `EPOCHS` repetitions of the plan.
    """
    steps = consumed_steps(log, plan.prompts_per_step, rollouts, any_slot)
    count = max(steps) + 1
    if count > EPOCHS * plan.steps:
        raise LogError(f"the log reaches step {count - 1}, the plan has {plan.steps}: is its 'step' the optimiser step?")
    epochs = -(-count // plan.steps)
    planned = [plan.ids[i : i + plan.prompts_per_step] for i in range(0, len(plan.ids), plan.prompts_per_step)] * epochs
    found = [steps.get(step, []) for step in range(len(planned))]
    first = next((d for step in range(len(found)) if (d := _departure(step, planned[step], found[step], any_slot))), None)
    times = Counter(name for step in found for name in set(step))
    known = set(plan.ids)
    return FollowReport(
        followed=first is None,
        steps_logged=count,
        steps_planned=plan.steps,
        epochs=epochs,
        steps_kept=sum(sorted(a) == sorted(b) for a, b in zip(planned, found, strict=True)),
        first=first,
        log_ended=first is not None and first.consumed is None and not any(found[first.step + 1 :]),
        dropped=tuple(name for name in plan.ids if name not in times),
        repeated=tuple(name for name in dict.fromkeys(log.ids) if times[name] > epochs),
        unknown=tuple(name for name in dict.fromkeys(log.ids) if name not in known),
    )


def consumed_steps(
    log: ConsumedLog, prompts_per_step: int, rollouts: int | None = None, any_slot: bool = False
) -> dict[int, list[str]]:
    """Step from 0 -> the prompts it consumed, in order of the log; with `any_slot` each group of a prompt's rollouts once.

    >>> consumed_steps(ConsumedLog(("a", "a", "b", "b", "c", "c")), prompts_per_step=2)
    {0: ['a', 'b'], 1: ['c']}
    """
    if rollouts is not None and rollouts < 1:
        raise LogError(f"--rollouts {rollouts}: give the rollouts a prompt, at least 1")
    lines: dict[int, list[str]] = {}
    if log.steps is not None:
        base = 0 if min(log.steps) == 0 else 1
        for step, name in sorted(zip((s - base for s in log.steps), log.ids, strict=True), key=lambda pair: pair[0]):
            lines.setdefault(step, []).append(name)
    else:
        ids = list(log.ids) if rollouts else _without_rollouts(list(log.ids))
        size = prompts_per_step * (rollouts or 1)
        lines = {i // size: ids[i : i + size] for i in range(0, len(ids), size)}
    if not any_slot:
        return {step: _without_rollouts(ids) for step, ids in lines.items()}
    counts = {step: Counter(ids) for step, ids in lines.items()}
    sizes = Counter(count for found in counts.values() for count in found.values())
    group = rollouts or max(sizes, key=lambda size: (sizes[size], -size))
    return {step: [name for name, n in found.items() for _ in range(-(-n // group))] for step, found in counts.items()}


def _without_rollouts(ids: list[str]) -> list[str]:
    return [name for name, _ in groupby(ids)]


def _departure(step: int, planned: list[str], found: list[str], any_slot: bool) -> Departure | None:
    """The first difference of one step; with `any_slot` the first planned prompt that is missing and the first one too many."""
    if any_slot:
        missing = [i for i, name in enumerate(planned) if name not in found]
        strangers = list((Counter(found) - Counter(planned)).elements())
        if not missing and not strangers:
            return None
        slot = missing[0] if missing else len(planned)
        return Departure(step, slot, planned[slot] if missing else None, strangers[0] if strangers else None)
    for slot in range(max(len(planned), len(found))):
        pair = [names[slot] if slot < len(names) else None for names in (planned, found)]
        if pair[0] != pair[1]:
            return Departure(step, slot, *pair)
    return None
