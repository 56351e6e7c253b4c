"""MLflow as a mirror of the records, in a process of its own. It knows neither trainings nor searches, only what they have written.

An edit here retrains nothing. It imports ground; copy.py alone imports mlflow.
"""
