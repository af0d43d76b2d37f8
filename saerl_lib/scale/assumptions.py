"""What the formulas of `scale` rest on beyond `PaperConfig`: the paper's plan's assumptions and those of disks, cores and prices.

Every field carries unit, origin and reason, as in `saerl_lib.paper.assumptions`; all that enter are printed.
"""

from __future__ import annotations

from dataclasses import dataclass

from saerl_lib.paper.assumptions import OURS, PAPER, Assumptions, ours
from saerl_lib.paper.config import PaperConfig


@dataclass(frozen=True)
class ScaleAssumptions(Assumptions):
    """Bytes, rates and prices; the inherited ones are those of the paper's own scale."""

    sae_k: int = ours(50, "latents/token", "TopK of the published SAE that PaperConfig names; the paper does not state k")
    distinct_share: float = ours(
        0.6, "share", "of the latents of a text whose tokens draw theirs at random; measured on the world's pool, F = 2,048"
    )
    store_entry_bytes: int = ours(12, "B", "column int32, mean and peak float32 (saerl_lib/encode/store.py)")
    z_bytes: int = ours(2, "B", "float16")
    metadata_bytes: int = ours(4, "B", "float32: float16 ends at 65,504 and counts exactly to 2,048 only")
    id_bytes: int = ours(15, "B", "a prefix and ten digits, as the simulation draws")
    gpus: int = ours(8, "H100", "one node; encoding is divided by samples")
    gpu_batch_tokens: int = ours(65_536, "tokens", "of one forward pass: how often the weights are read")
    processes: int = ours(1, "processes", "on one core each, as simulated; passes over blocks divide, a merge does not")
    disk_bytes_per_second: float = ours(1e9, "B/s", "one NVMe volume, reading or writing in sequence")
    memory_bytes_per_second: float = ours(1e10, "B/s", "one core of a server CPU")
    core_flops: float = ours(2e10, "FLOP/s", "one core, float64 products of few columns")
    fit_bytes_per_number: int = ours(98, "B", "arrays of refine_clusters: 10 to load, 20 to convert, 48 to scale, 20 in k-means")
    score_bytes_per_number: int = ours(208, "B", "of score_blocks: 10 to load, 128 to assign (distances included), 70 to predict")
    elementwise_flops_per_number: int = ours(10, "FLOP", "scaling, clipping and checks of one number in one pass")
    compares_per_second: float = ours(1e8, "1/s", "keys of records, sorted by one core")
    merge_rows_per_second: float = ours(2e6, "records/s", "blocks cut, joined and sorted again by one core")
    swap_rows_per_second: float = ours(2e6, "samples/s", "stages formed and tails exchanged, about 100 a batch at 128 prompts")
    export_rows_per_second: float = ours(5e5, "samples/s", "ids to text, Parquet's encoding, hashes; one core")
    plan_row_bytes: int = ours(25, "B", "a row of plan.parquet: ids, two scores and numbers, compressed")
    usd_per_h100_hour: float = ours(2.5, "USD", "order of what clouds ask; no quotation")
    usd_per_core_hour: float = ours(0.05, "USD", "order of what clouds ask; no quotation")
    usd_per_terabyte_month: float = ours(80.0, "USD", "SSD volume, order of what clouds ask; no quotation")
    python_id_bytes: int = ours(57, "B", "a Python string and a pointer to it, beside its characters")
    counter_entry_bytes: int = ours(40, "B", "an entry of a Counter or a set with its share of empty places, without the key")


INHERITED = ("h100_peak_flops", "h100_bytes_per_second", "encode_utilisation", "deepmath_solution_bytes", "math_bytes_per_token",
             "prompt_tokens")  # fmt: skip
"""Fields of `Assumptions` that enter here."""

STATED = (
    ("clusters", "K"),
    ("labelled_samples", "samples"),
    ("prompts_per_step", "prompts"),
    ("max_response_tokens", "tokens, at which the expected figure cuts solutions"),
    ("metadata_features", "columns"),
)
"""Fields of `PaperConfig` that enter and are stated in the paper."""


def assumption_rows(config: PaperConfig, given: ScaleAssumptions) -> list[tuple[str, str, str, str]]:
    """(name, value, origin, why) of everything that enters."""
    own = set(ScaleAssumptions.__dataclass_fields__) - set(Assumptions.__dataclass_fields__)
    found = [(name, f"{getattr(config, name):,}", PAPER, what) for name, what in STATED]
    found.append(("retained_latents", f"{config.retained_latents:,}", OURS, "from 960 = 4 x 240, inferred from the paper"))
    found.append(("sae_latents", f"{config.sae_latents:,}", OURS, "F of the published SAE (the paper's own: 131,072)"))
    found.append(("swapped_per_batch", str(config.swapped_per_batch), OURS, "h; that of the paper's main runs is not stated"))
    return found + [row for row in given.rows() if row[0] in own or row[0] in INHERITED]
