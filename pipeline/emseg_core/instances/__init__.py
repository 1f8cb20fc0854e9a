"""From boundary probabilities or classes to instance labels that are consistent across blocks."""
