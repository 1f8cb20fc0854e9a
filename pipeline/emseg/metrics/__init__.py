"""How good labels are, against a known truth; NumPy only."""
