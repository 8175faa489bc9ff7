"""`mora doctor`: what is installed, and which backend would run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mora.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the arguments."""
    parser = commands.add_parser("doctor", help="what is installed, and which backend would run and why")
    parser.add_argument("--kernels", action="store_true", help="compile every Triton kernel and show its machine code")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, command: str) -> None:
    """Run `mora doctor`."""
    from mora.system.doctor import doctor

    print(doctor())
    if options.kernels:
        from mora_kernels.triton.report import main as report

        print()
        report([])
