"""Data sets that are read into memory, and what cuts, splits, augments and packs them."""

from dist_trainer.data.arrays import Arrays
from dist_trainer.data.augment import Normalize, RandomCrop, RandomFlip
from dist_trainer.data.memory import InMemory
from dist_trainer.data.pack import pack
from dist_trainer.data.samples import Digits, Line
from dist_trainer.data.series import Windows, plot_forecast, sine
from dist_trainer.data.split import split_dataset
from dist_trainer.data.tables import CSV

__all__ = [
    "Arrays",
    "CSV",
    "Digits",
    "InMemory",
    "Line",
    "Normalize",
    "RandomCrop",
    "RandomFlip",
    "Windows",
    "pack",
    "plot_forecast",
    "sine",
    "split_dataset",
]
