"""Standalone HTML pages: markup, charts and pictures."""
