"""`python -m saerl_lib.paper --profile paper --plan-only`: the plan before any package is installed."""

from saerl_lib.paper.command import main

if __name__ == "__main__":
    raise SystemExit(main())
