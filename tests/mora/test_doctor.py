"""mora doctor says what is installed and which backend runs."""

import os
import subprocess
import sys

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


def test_a_reader_that_stops_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-u", "-m", "mora.cli", "doctor"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
