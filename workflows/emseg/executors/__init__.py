"""Executors: run blocks in this process, or on Dask."""
