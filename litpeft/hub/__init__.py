"""Models and data sets from the hub, local folders, installed packages and PyPI."""
