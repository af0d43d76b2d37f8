"""`python -m saerl_lib scale`: 100 million samples by formula, a measured run of the out-of-core path, and the document."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from saerl_lib import paths
from saerl_lib.notebooks import UserError
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.text import table
from saerl_lib.report.tables import markdown_table, update_block
from saerl_lib.scale.assumptions import ScaleAssumptions, assumption_rows
from saerl_lib.scale.config import ScaleConfig
from saerl_lib.scale.formula import Step, all_steps
from saerl_lib.scale.simulate import Simulation, simulate
from saerl_lib.scale.tables import Rows, facts, growth_rows, measured_facts, measured_rows, step_rows

SAMPLES = 100_000_000
"""Samples of the formulas without `--samples`, and those of the document."""
DOCUMENT = paths.ROOT / "docs" / "hundred_million.md"
ASSUMED = ("Assumption", "Value", "Origin", "Why")


def _markdown(rows: Rows) -> str:
    return markdown_table(rows[0], rows[1:])


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def formula_parts(samples: int) -> dict[str, str]:
    """Marker -> Markdown of the document's parts that come from formulas."""
    config, given, scale = PaperConfig(), ScaleAssumptions(), ScaleConfig()
    return {
        "scale-steps": _markdown(step_rows(all_steps(samples, config, given, scale), given)),
        "scale-facts": _bullets(facts(samples, config, given, scale)),
        "scale-memory": _markdown(growth_rows(samples, config, given)),
        "scale-assumptions": _markdown([ASSUMED, *assumption_rows(config, given)]),
    }


def measured_part(found: Simulation, steps: Sequence[Step], samples: int) -> str:
    """Markdown of the document's measured part."""
    return f"{_markdown(measured_rows(found, steps, samples))}\n\n{_bullets(measured_facts(found, steps, samples))}"


def write_document(parts: dict[str, str], document: Path = DOCUMENT) -> None:
    """Put the parts between their markers. Raises ValueError and ArtifactError as `update_block` does."""
    for marker, text in parts.items():
        update_block(document, marker, text)


def _print(title: str, rows: Rows) -> None:
    print(f"\n{title}")
    print("\n".join(table(rows)))


def _json(samples: int, steps: Sequence[Step], found: Simulation | None) -> dict[str, float]:
    line: dict[str, float] = {"samples": samples}
    for step in steps:
        line |= {f"{step.key}_formula_s": round(step.seconds, 3)}
        line |= {f"{step.key}_bytes": round(step.left_bytes)} if step.left_bytes else {}
    line |= {"encode_h100_hours": round(steps[0].gpu_hours[0], 1), "encode_h100_hours_upper": round(steps[0].gpu_hours[1], 1)}
    if found is not None:
        line |= {"simulated_samples": found.samples, "peak_mb": round(found.peak_bytes / 1e6, 1)}
        for kind, times in (("s", found.wall), ("processor_s", found.processor)):
            line |= {f"{name}_{kind}": round(seconds, 4) for name, seconds in times.items()}
            line[f"total_{kind}"] = round(sum(times.values()), 3)
        line |= {"feature_bytes": found.feature_bytes,
                 "sorted_bytes": found.sorted_bytes, "plan_bytes": found.plan_bytes,
                 "extrapolated_processor_s": round(sum(found.extrapolated(samples).values()), 1)}  # fmt: skip
    return line


def run_scale(samples: int = SAMPLES, simulated: int | None = None, write_docs: bool = False) -> int:
    """Print the formulas' tables, simulate if asked, and one JSON line last; returns 0.

    Raises UserError when the document is to be written for another number of samples, ValueError for fewer than a batch.
    """
    if write_docs and samples != SAMPLES:
        raise UserError(f"--write-docs writes {DOCUMENT.name} for {SAMPLES:,} samples: leave out --samples")
    config, given, scale = PaperConfig(), ScaleAssumptions(), ScaleConfig()
    steps = all_steps(samples, config, given, scale)
    print(f"{samples:,} samples by formula: {given.gpus} H100 for encoding, {given.processes} CPU core for the rest")
    _print("Steps", step_rows(steps, given))
    print("\n".join(["", *(f"- {sentence}" for sentence in facts(samples, config, given, scale))]))
    _print("The in-memory path: what grows with the samples", growth_rows(samples, config, given))
    _print("Assumptions", [ASSUMED, *assumption_rows(config, given)])
    parts, found = formula_parts(samples), None
    if simulated is not None:
        found = simulate(simulated, config.prompts_per_step, scale)
        title = f"Measured on {found.samples:,} synthetic samples, one process on one of {os.cpu_count()} cores"
        _print(title, measured_rows(found, steps, samples))
        print("\n".join(["", *(f"- {sentence}" for sentence in measured_facts(found, steps, samples))]))
        parts["scale-measured"] = measured_part(found, steps, samples)
    if write_docs:
        write_document(parts)
        print(f"\nwrote {DOCUMENT.relative_to(paths.ROOT)}")
    print(json.dumps(_json(samples, steps, found)))
    return 0
