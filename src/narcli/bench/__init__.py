"""Measurements of loading, sampling and memory."""
