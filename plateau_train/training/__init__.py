"""Training: the loop over epochs, and what comes before it. Returns, logs and calls callbacks.

Imports numerics, data, run and the layers below them; never prints.
"""
