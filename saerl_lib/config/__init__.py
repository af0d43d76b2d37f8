"""Every choice of a run in frozen records, one module a stage; `get_profile` is the only dial.

A field says where its value comes from: "paper, section X" or "not stated in the paper; ours".
"""

from saerl_lib.config.hashing import content_hash, sub_seed, to_dict
from saerl_lib.config.plan import REST, UNEQUAL, PlanConfig
from saerl_lib.config.profiles import (
    LAPTOP,
    METHOD,
    PROFILES,
    SMOKE,
    STUDY,
    MethodConfig,
    Profile,
    UnknownProfileError,
    get_profile,
)
from saerl_lib.config.properties import PropertyConfig
from saerl_lib.config.reading import EncoderConfig, TextModelConfig
from saerl_lib.config.training import GradientConfig, StudyConfig, TrainConfig
from saerl_lib.config.world import WORLD_PARTS, WORLD_VERSION, WorldConfig

__all__ = [
    "EncoderConfig",
    "GradientConfig",
    "LAPTOP",
    "METHOD",
    "MethodConfig",
    "PROFILES",
    "PlanConfig",
    "Profile",
    "PropertyConfig",
    "REST",
    "SMOKE",
    "STUDY",
    "StudyConfig",
    "TextModelConfig",
    "TrainConfig",
    "UNEQUAL",
    "UnknownProfileError",
    "WORLD_PARTS",
    "WORLD_VERSION",
    "WorldConfig",
    "content_hash",
    "get_profile",
    "sub_seed",
    "to_dict",
]
