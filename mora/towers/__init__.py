"""What a model is made of: a tower per modality, and the slots of its blocks."""

from mora.towers.cutting import CutTower
from mora.towers.find import recipe_of, towers_of
from mora.towers.slots import Slot
from mora.towers.tower import Tower

__all__ = ["CutTower", "Slot", "Tower", "recipe_of", "towers_of"]
