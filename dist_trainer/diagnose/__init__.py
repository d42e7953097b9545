"""What went wrong with a run, on one screen; and rehearsals of what could."""
