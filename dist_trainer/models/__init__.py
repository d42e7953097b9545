"""Reference nets for the examples; `model.target` takes any other class as well."""

from dist_trainer.models.nets import MLP, Logistic, LSTMForecaster, SimpleCNN, SimpleNet
from dist_trainer.models.pretrained import Pretrained

__all__ = ["LSTMForecaster", "Logistic", "MLP", "Pretrained", "SimpleCNN", "SimpleNet"]
