"""Reproduce the U-Net paper (Ronneberger, Fischer and Brox 2015, arXiv:1505.04597) section by section with the code of emseg.

Each module is a section: its function `report` returns its results as text, and `draw`, where there is one, a figure as SVG.
Run ``python -m unet_paper`` in the parent folder to update README.md and the figures in this folder.
"""
