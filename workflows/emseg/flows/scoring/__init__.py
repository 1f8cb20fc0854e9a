"""Inputs and instance scores of an evaluation."""
