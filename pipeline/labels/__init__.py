"""What label maps are: how a mask's ids and colours become class ids, and the colours of classes.

An edit here prepares anew, and trains anew only where a label map comes out other. It imports ground and data.
"""
