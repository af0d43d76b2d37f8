"""The batch plan: which samples form the batch of every optimiser step (paper, section 3)."""
