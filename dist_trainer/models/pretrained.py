"""A torchvision net with a new head: `features` gives one vector per image, `classifier` is the head."""

from collections.abc import Mapping

from torch import Tensor, nn

from dist_trainer.errors import ConfigError


class Pretrained(nn.Module):
    """Any classifier of torchvision by name, its last linear layer replaced by a new one.

    `weights` as torchvision takes them (DEFAULT downloads). A file of weights comes in by `load_pretrained`.
    Images of another size are scaled to `image_size`. Parameters are called `features.*` and `classifier.*`
    for any architecture: freeze the first, or train it at a smaller rate. Raises ConfigError.
    """

    def __init__(
        self,
        architecture: str,
        *,
        num_classes: int,
        weights: str | None = None,
        image_size: int | None = None,
    ) -> None:
        import torchvision  # takes more than a second, which the other nets should not cost

        super().__init__()
        try:
            self.features: nn.Module = torchvision.models.get_model(architecture, weights=weights)
        except ValueError as error:
            near = ", ".join(name for name in torchvision.models.list_models() if architecture[:4] in name)
            raise ConfigError(f"model.architecture: {error}; near names: {near or 'none'}") from error
        heads = [name for name, module in self.features.named_modules() if isinstance(module, nn.Linear)]
        if not heads:
            raise ConfigError(f"model.architecture: {architecture} has no linear layer to replace")
        head = self.features.get_submodule(heads[-1])
        assert isinstance(head, nn.Linear)
        self.classifier = nn.Linear(head.in_features, num_classes)
        self.features.set_submodule(heads[-1], nn.Identity())
        self._head_prefix = f"{heads[-1]}."
        self.image_size = image_size

    def forward(self, images: Tensor) -> Tensor:
        size = self.image_size
        if size and images.shape[-2:] != (size, size) and len(images):
            images = nn.functional.interpolate(
                images, size=(size, size), mode="bilinear", align_corners=False, antialias=False
            )
        output: Tensor = self.classifier(self.features(images))
        return output

    def load_pretrained(self, state: Mapping[str, Tensor]) -> None:
        """Take the backbone from a state dict: torchvision's names, or the same tensors in the same order.

        Its head is left out: the new one stays as it is. ConfigError where a tensor is missing or has another
        shape.
        """
        own = self.features.state_dict()
        if own.keys() <= state.keys():
            chosen = {name: state[name] for name in own}
        else:
            others = [value for name, value in state.items() if not name.startswith(self._head_prefix)]
            if len(others) != len(own):
                lacking = next(iter(own.keys() - state.keys()))
                raise ConfigError(
                    f"model.weights: the file has {len(state)} tensors, none called {lacking}, and the "
                    f"backbone {len(own)}; they fit by name, or by order where the numbers agree"
                )
            chosen = dict(zip(own, others, strict=True))
        for name, value in chosen.items():
            if value.shape != own[name].shape:
                raise ConfigError(
                    f"model.weights: the file's tensor for {name} has the shape {tuple(value.shape)}, "
                    f"needed is {tuple(own[name].shape)}"
                )
        self.features.load_state_dict(chosen)
