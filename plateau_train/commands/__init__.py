"""One module for each command, named after it: it parses, calls and prints.

Commands do not import each other. Imports every folder of the layers below.
"""
