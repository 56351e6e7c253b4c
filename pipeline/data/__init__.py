"""What stages read of the store: prepared pairs, images, superpixel maps, decoded arrays.

An edit here prepares, trains and evaluates anew, for it may change what a batch or an evaluation sees. It imports ground and settings.
"""
