"""What hf_text.yaml names: a Hugging Face classifier, labelled texts, the tokenizer as collate, and the task."""

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dist_trainer import Supervised


def classifier(folder: str, labels: int) -> nn.Module:
    """The model of a local folder with a new head."""
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)


class Texts(Dataset[tuple[str, int]]):
    """A CSV file with the columns text and label; labels are numbered in their alphabetical order."""

    def __init__(self, path: str) -> None:
        with Path(path).open(newline="") as file:
            rows = list(csv.DictReader(file))
        self.names = sorted({row["label"] for row in rows})
        self.texts = [row["text"] for row in rows]
        self.targets = [self.names.index(row["label"]) for row in rows]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return self.texts[index], self.targets[index]


class Tokenize:
    """Makes (keywords of the model, labels) of a list of (text, label); texts are cut at `length` tokens."""

    def __init__(self, folder: str, length: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.length = length

    def __call__(self, samples: list[tuple[str, int]]) -> tuple[dict[str, Tensor], Tensor]:
        texts, labels = zip(*samples, strict=True)
        words = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        )
        return dict(words), torch.tensor(labels)


class Logits(Supervised):
    """A model that gives an object with `logits`; loss and metrics see those alone."""

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        """The scores, (rows, labels)."""
        return super().forward(model, batch).logits
