"""`python -m saerl_lib`: see `cli`."""

from saerl_lib.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
