"""The operating system's side of a program: signals, standard streams, the processes of a cluster.

Imports errors and config only.
"""
