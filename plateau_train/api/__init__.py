"""What the commands and Python do with runs: train, read, score, compare, replay and draw.

The functions return values and print nothing but through the callbacks that they are given. Imports
training, report and plots, and the layers below.
"""
