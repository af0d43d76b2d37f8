"""`python -m saerl_lib audit SAMPLE_ID`: the decision path of one sample of a finished profile."""

from __future__ import annotations

import json

from saerl_lib.artifacts import load_stage
from saerl_lib.config import get_profile
from saerl_lib.plan.audit import audit, open_evidence
from saerl_lib.plan.audit_text import audit_text
from saerl_lib.properties.audit import audit_stage


def run_audit(sample_id: str, profile: str, seed: int, as_json: bool) -> int:
    """Print the record as paragraphs or JSON; the stage `audit` is computed when it is missing.

    Raises UnknownSampleError with near ids, ArtifactError when a stage of the profile was not run yet.
    """
    settings = get_profile(profile, seed=seed)
    stages = [load_stage(settings, name) for name in ("world", "sae", "features", "difficulty")]
    for name in ("filter", "plans"):
        load_stage(settings, name)
    record = audit(sample_id, open_evidence(settings, audit_stage(settings, *stages)))
    print(json.dumps(record.to_dict(), indent=1, ensure_ascii=False) if as_json else audit_text(record))
    return 0
