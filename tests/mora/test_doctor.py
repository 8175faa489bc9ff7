"""mora doctor says what is installed and which backend runs."""

import torch

from mora.cli import main
from mora.doctor import doctor


def test_doctor_names_versions_and_backends(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.strip() == doctor()
    assert torch.__version__.split("+")[0] in text
    assert "float32   torch: the factorised PyTorch path runs on cpu" in text or torch.cuda.is_available()
    assert "ABSENT" not in text
