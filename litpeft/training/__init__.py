"""Several processes that train one model: how they find each other, share it, and end together."""
