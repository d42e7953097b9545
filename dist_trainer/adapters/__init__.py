"""The seams to the outside: one file per outside library."""
