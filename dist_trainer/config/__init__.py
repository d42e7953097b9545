"""What a user can set, and how files and command-line values become one checked Config."""
