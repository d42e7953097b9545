"""Saving and restoring a run: the commit protocol, what is captured, and when."""
