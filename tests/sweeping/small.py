"""A sweep that trains in a second: the fakes of the training tests, and what is looked at afterwards."""

import io
import json

import rich.console

from mora.sweeping.sweep import Sweep
from tests.training import fakes

BASE = dict(epochs=2, batch=20, missing="both:0.5", device="cpu", last_layers=1, log_every=100)


def console():
    return rich.console.Console(file=io.StringIO(), width=80)


def plan(out, **fields):
    return Sweep.make("rows", out, **{**BASE, **fields})


def run(out, datasets=None, jobs=1, told=None, test=True, **fields):
    return plan(out, **fields).run(jobs, fakes.backbone(), datasets or fakes.splits(), told or console(), test)


def state(out):
    return json.loads((out / "sweep.json").read_text())


def steps(monkeypatch, act):
    """`act(number, trainer's configuration)` before every step of the optimiser; numbers count from 1."""
    from mora.training.engine import Engine

    step, count = Engine.step, iter(range(1, 10**6))

    def acting(self, *arguments):
        act(next(count), self.config)
        return step(self, *arguments)

    monkeypatch.setattr(Engine, "step", acting)
