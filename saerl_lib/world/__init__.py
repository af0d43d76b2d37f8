"""The embedded world: generated problems, their sources, and the gates that it must pass."""
