"""The RL study as a whole: its committed record, its tables, the diversity behind its mixing curve."""
