"""A project to start from: a configuration, a module of one's own, and a profile of the cluster that is there."""
