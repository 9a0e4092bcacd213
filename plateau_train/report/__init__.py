"""Terminal output, and results as text.

The functions here render plain results and compute no numbers of their own, except for the
statistics over seeds; replays are those of numerics. Imports numerics, run, config and errors.
"""
