"""Runs as PEFT's files, by `mora to-peft`."""

import json

import pytest
import torch

import mora
from mora.cli import main
from mora.export.merge import probes
from mora.export.peft import run_to_peft
from mora.runs.run import load_run
from mora_kernels.testing import assert_parity
from tests.evaluation.fakes import write_run
from tests.mora.models import embed


@pytest.mark.parametrize("method", ["mora", "dora"])
def test_a_run_becomes_a_folder_that_peft_loads(method, tmp_path, capsys):
    """Every singular value of a MoRA, or a DoRA as it is: mora reads the folder, and computes what the run does."""
    run = write_run(tmp_path / "run", method)
    assert main(["to-peft", "--model", str(run), "--out", str(tmp_path / "out"), "--rank", "200"]) == 0
    printed = capsys.readouterr().out
    assert ("99 % of their energy takes rank" in printed) == (method == "mora")
    loaded = load_run(run)
    given = probes(loaded.model)
    image, text = given["image"], given["text"]
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA"
    assert fields["use_dora"] == (method == "dora")
    plain = mora.load_adapter(load_run(write_run(tmp_path / "plain", "linear")).model.model, tmp_path / "out")
    with torch.no_grad():
        for one, expected in zip(
            embed(plain.eval(), image, text), embed(loaded.model.model.eval(), image, text), strict=True
        ):
            assert_parity("embedding", one, expected, {torch.float32: 2e-5})
    assert main(["to-peft", "--model", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "which holds other files" in capsys.readouterr().err


def test_other_methods_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got a run of method 'bitfit', expected one of lora, dora, mora"):
        run_to_peft(write_run(tmp_path / "run", "bitfit"), tmp_path / "out")
