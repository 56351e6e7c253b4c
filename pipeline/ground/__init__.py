"""What everything stands on: errors for people, whole files and locks, the store, progress, processes that end with their starter.

An edit here retrains nothing. It imports nothing of ours.
"""
