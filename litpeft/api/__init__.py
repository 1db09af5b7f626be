"""The Python API: the command line's verbs as functions. `litpeft/__init__.py` names what is public."""
