"""Scores of labels against ground truth; NumPy only."""
