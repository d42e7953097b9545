"""How runs and their jobs stand, in words: the list, the detail, the logs, cancelling."""
