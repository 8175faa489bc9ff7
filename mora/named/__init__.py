"""Several adapters on one model, each with a name: one of them is set, any may be used for a while."""

from mora.named.arithmetic import combine, unmerge
from mora.named.verbs import active_adapter, add_adapter, delete_adapter, set_adapter, using

__all__ = ["active_adapter", "add_adapter", "combine", "delete_adapter", "set_adapter", "unmerge", "using"]
