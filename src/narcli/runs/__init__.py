"""Runs: from all that is asked for to files, and again from files."""
