"""What the representation knows about a sample: cluster, difficulty, quality (paper, sections 2 and 4)."""
