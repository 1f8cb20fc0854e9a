"""Dask clusters: where workers come from."""
