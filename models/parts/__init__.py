"""What several heads, crfs or losses share: layers, attention, the decoder, cross entropy, batch norm and sums over processes.

The parts import kernels and one another. Every weight depends on this folder: an edit here retrains.
"""
