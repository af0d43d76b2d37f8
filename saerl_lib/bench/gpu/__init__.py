"""The GPU test set: one code for `pytest -m gpu` and `python -m saerl_lib bench gpu`; needs no network (ours)."""
