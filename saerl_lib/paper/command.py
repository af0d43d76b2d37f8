"""The command behind `--profile paper`: the plan for this machine, and whether it can be run; the standard library alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from saerl_lib.paper.assumptions import Assumptions
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.machine import look
from saerl_lib.paper.needs import blocking
from saerl_lib.paper.plan import plan_text


def check_request(profile: str, plan_only: bool, rest: Sequence[str] = ()) -> None:
    """Raise ValueError unless the plan of profile `paper`, and nothing else, is asked for."""
    if profile != "paper":
        raise ValueError(f"--plan-only belongs to --profile paper; profile {profile!r} has no plan, run it without --plan-only")
    if not plan_only:
        raise ValueError("profile 'paper' runs in an environment with the locked packages alone; add --plan-only for its plan")
    if rest:
        raise ValueError(f"--plan-only takes no further option; leave out {' '.join(rest)}")


def run_plan(profile: str, rest: Sequence[str] = ()) -> int:
    """Print the plan for this machine; returns 0.

    Raises ValueError when something else is asked for, and what `saerl_lib.paper.machine.look` raises.
    """
    check_request(profile, True, rest)
    print(plan_text(PaperConfig(), Assumptions(), look()))
    return 0


def require_machine(config: PaperConfig, say: Callable[[str], None]) -> None:
    """Let a run pass whose models, SAE and data are all local, or whose plan this machine can hold; the plan is shown then.

    Else `say` is told what is missing, and ValueError is raised.
    """
    absent = [option for option, there in config.stand_ins.items() if not there]
    if not absent:
        return
    chosen = tuple(model for model in config.policies if model.repository == config.policy) or config.policies[:1]
    wanted = replace(config, policies=chosen, runs_per_policy=(len(config.arms) * config.seeds,))
    given, machine = Assumptions(), look()
    lacks = blocking(wanted, given, machine)
    if not lacks:
        say(plan_text(wanted, given, machine))
        return
    say("\n".join(["Missing here:", *(f"  - {item}" for item in lacks)]))
    raise ValueError(
        "profile 'paper' takes models and data from the Hugging Face Hub and needs GPUs; this machine lacks what is listed above "
        f"(--plan-only prints the whole plan). On local stand-ins it runs anywhere; not given: {', '.join(absent)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m saerl_lib.paper`: needs no package; returns 0, or 1 with a message."""
    parser = argparse.ArgumentParser(prog="python -m saerl_lib.paper", description="the plan of profile paper")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--plan-only", action="store_true")
    parser.add_argument("--debug", action="store_true")
    arguments, rest = parser.parse_known_args(argv)
    try:
        check_request(arguments.profile, arguments.plan_only, rest)
        return run_plan(arguments.profile)
    except (ValueError, OSError) as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
