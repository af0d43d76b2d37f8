"""Policies, arms, sampling, GRPO by TRL, runs and their evaluation."""
