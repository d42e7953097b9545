"""Looks for values of a configuration by short trainings: the learning rate."""
