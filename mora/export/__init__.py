"""A trained run as a plain checkpoint that loads without mora, with a model card."""

from mora.export.merge import merge_run

__all__ = ["merge_run"]
