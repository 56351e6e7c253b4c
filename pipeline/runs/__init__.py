"""What a run leaves on the disk and how it goes on: fingerprint, finished and partial runs, record, copies, checks before it starts.

An edit here retrains nothing. It imports training, tracking and what is below.
"""
