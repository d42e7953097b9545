"""Metrics and events: on disk first, then carried to MLflow."""
