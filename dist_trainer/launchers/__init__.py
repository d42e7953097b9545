"""Where workers run, and who starts them."""
