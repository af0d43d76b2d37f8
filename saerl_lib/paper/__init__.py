"""Profile `paper`: the paper's own models, data and settings, what they would cost, and readers of the published data sets.

`python -m saerl_lib run --profile paper --plan-only` prints the plan from the standard library alone; nothing is downloaded.
"""
