"""Run-time services: block dispatch, events, stopping, progress and totals."""
