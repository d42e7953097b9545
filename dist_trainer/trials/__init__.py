"""Short copies of a training, in a folder that is cleared away: what rehearsals, plans and tests train."""
