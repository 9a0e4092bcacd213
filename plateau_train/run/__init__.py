"""The run folder on disk: its files and its lock, checkpoints, records, and how a run is read.

Imports config and errors.
"""
