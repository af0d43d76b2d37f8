"""`python -m saerl_lib world`: measure every gate of the world, or rebuild what it ships."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

from saerl_lib import paths
from saerl_lib.artifacts import provenance, write_json
from saerl_lib.config import WORLD_PARTS, WORLD_VERSION, Profile, get_profile
from saerl_lib.data.rebuild import rebuild_encoder, rebuild_policy
from saerl_lib.data.stage import world_stage
from saerl_lib.encode.device import pick_device
from saerl_lib.report.figures import draw
from saerl_lib.report.tables import write_csv
from saerl_lib.rl.base_rates import base_rates_stage
from saerl_lib.rl.calibrate import rebuild_mixture
from saerl_lib.rl.gates import TRAINED_RECORD, gate_table, trained_settings
from saerl_lib.rl.reserved import order_evaluations, order_gates, reserved_world, transfer_gate
from saerl_lib.train.policy import POLICIES, policy_folder


def check_world(profile: Profile) -> bool:
    """Measure all gates, store those of training runs, print the table; True when every gate is met."""
    reserved = reserved_world(profile)
    evaluations = order_evaluations(profile, reserved)
    gates = order_gates(evaluations, profile.world.eval_problems_small, profile.train.seeds)
    gates["transfer: other domains' gain / own gain"] = transfer_gate(profile, reserved)
    write_json(
        TRAINED_RECORD,
        {"settings": trained_settings(), "world_version": WORLD_VERSION, "provenance": provenance(), "gates": gates},
    )
    world = world_stage(profile)
    table = gate_table(profile, world, base_rates_stage(profile, world))
    folder = paths.profile_dir(profile.name) / "world_check"
    write_csv(table, "world_gates", folder)
    draw("world_gates", folder, folder)
    print(table[["gate", "value", "low", "high", "met", "n"]].to_string(index=False))
    print(f"table and figure: {folder}")
    return bool(table["met"].all())


def rebuild_part(part: str, profile: Profile, device: torch.device) -> None:
    """One of `WORLD_PARTS`, from scratch, in place; weights are trained on `device` and get provenance.json beside them."""

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step}: {loss:.4f} nats a token", flush=True)

    if part == "mixture":
        print(f"mixture: total variation {rebuild_mixture(profile.train):.4f} on the pilot")
        return
    print(part)
    if part in POLICIES:
        rebuild_policy(policy_folder(part), report=report, config=POLICIES[part], device=device)
    else:
        rebuild_encoder(paths.WEIGHTS / part, part == "encoder_all_families", report=report, device=device)
    machine = {"threads": torch.get_num_threads(), "processor": platform.processor() or platform.machine()}
    on = {} if device.type == "cpu" else {"device": torch.cuda.get_device_name(device)}
    command = f"python -m saerl_lib world --rebuild {part}" + (f" --device {device.type}" if on else "")
    write_json(paths.WEIGHTS / part / "provenance.json", {**provenance(), **machine, **on, "command": command})


def run_world(check: bool, rebuild: Sequence[str] | None, device_name: str | None = None) -> int:
    """Entry of the command; exit code 1 when a gate is missed.

    `rebuild` names some of `WORLD_PARTS`, all of them when it is empty. Raises ValueError for a device that is not there
    and for one given with `check`: gates and mixture are measured on the CPU.
    """
    if check and device_name:
        raise ValueError("world --check has no --device: gates are measured on the CPU")
    device = pick_device(device_name or "cpu")
    profile = get_profile("laptop")
    for part in WORLD_PARTS if rebuild == [] else rebuild or ():
        rebuild_part(part, profile, device)
    return 0 if not check or check_world(profile) else 1
