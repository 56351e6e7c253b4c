"""Backbones: from an image to stages of features, with their released weights.

They import parts and kernels. Every weight depends on this folder: an edit here retrains.
"""
