"""`python -m dist_trainer.cli`."""

from dist_trainer.cli import main

main()
