"""Runs: from a recipe to files, and from files to a recipe."""
