"""mora doctor says what is installed and which backend runs."""

import os
import subprocess
import sys

import torch

from mora.cli import main
from mora.system.doctor import doctor


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


def test_a_broken_driver_or_package_is_reported(monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA driver\nis too old")

    monkeypatch.setattr("mora.system.doctor.devices", lambda: [torch.device("cpu"), torch.device("cuda", 0)])
    monkeypatch.setattr(torch.cuda, "get_device_capability", broken)
    monkeypatch.setattr("mora_kernels.backend.missing", broken)
    monkeypatch.setattr("mora.system.doctor.metadata.version", broken)
    text = doctor()
    assert text.count("cuda:0: cannot be asked: CUDA driver is too old") == 2
    assert "damaged: CUDA driver is too old" in text and "float32   torch" in text
