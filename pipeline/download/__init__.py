"""Archives: fetched, resumed, checked, and extracted safely. Its products are known by their hashes, so an edit here reruns nothing.

It imports ground.
"""
