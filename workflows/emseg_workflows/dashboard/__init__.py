"""A page of our own on the Dask dashboard: `feed` is in the driver, all else in the scheduler's process."""
