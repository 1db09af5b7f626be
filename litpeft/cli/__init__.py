"""The command line: options, configuration files, error messages, and runs created or loaded from them."""
