"""Data sets that are read into memory, and what cuts, splits and augments them."""
