"""Superpixels, computed once for each image; slic.py alone imports scikit-image.

An edit here makes the sets anew (maps that are in the store are found there, unless slic.VERSION was raised). It imports data and below.
"""
