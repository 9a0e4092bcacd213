"""The numerics of training: model, plateau rule, schedules, one step, and the axis of replicas.

Pure functions of arrays: no files, no clock, no terminal, no environment. Imports config.
"""
