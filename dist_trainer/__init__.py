"""Distributed training for PyTorch that finishes what it starts."""
