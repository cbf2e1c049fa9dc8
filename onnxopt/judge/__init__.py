"""How much of the answer is left: metrics, perplexity, the gate."""
