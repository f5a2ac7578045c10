"""Small networks for small images, by name; users bring their own."""

from hpo_mab.models._networks import MLP, SmallCNN, available, create, options, resnet18

__all__ = ["MLP", "SmallCNN", "available", "create", "options", "resnet18"]
