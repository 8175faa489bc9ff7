"""What adapters did to a model: `mora.diagnose` for any patched one, `inspect_run` for a run folder."""

from mora.diagnosis.diagnose import diagnose
from mora.diagnosis.figures import Behaviour
from mora.diagnosis.report import Diagnosis

__all__ = ["Behaviour", "Diagnosis", "diagnose"]
