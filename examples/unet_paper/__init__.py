"""The U-Net paper (Ronneberger, Fischer and Brox 2015, arXiv:1505.04597), section by section, in the code of emseg.

Each module is a section: `told` is what it finds, as lines of text, and `drawn` its picture, as SVG, where it has one.
``python -m unet_paper`` in the folder above puts both into this folder: see README.md.
"""
