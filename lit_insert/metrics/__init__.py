"""Metrics, one class each."""
