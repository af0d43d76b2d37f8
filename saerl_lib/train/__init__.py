"""GRPO on a batch plan: policy, sampler, trainer, runs, arms, evaluation."""
