"""Documents, the one grammar that writes them as tokens, and packing them into rows for training."""
