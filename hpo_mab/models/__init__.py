"""Small networks for small images, by name; users bring their own."""

from hpo_mab.models._create import available, create, options
from hpo_mab.models._mlp import MLP
from hpo_mab.models._resnet18 import resnet18
from hpo_mab.models._small_cnn import SmallCNN

__all__ = ["MLP", "SmallCNN", "available", "create", "options", "resnet18"]
