"""Signals, standard streams, memory, and the processes of a cluster.

Imports errors and config only.
"""
