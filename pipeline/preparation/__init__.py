"""From a dataset's files to checked pairs in the store, and what a person should see of them.

An edit here prepares anew, and trains anew only where something comes out other. It imports datasets and what is below.
"""
