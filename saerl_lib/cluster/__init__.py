"""The study's grid on a Ray cluster (ours); `saerl_lib.encode.parts` encodes there."""
