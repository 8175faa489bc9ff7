"""The argument parser all commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from mora.system.messages import one_line

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["Parser"]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit with code 2."""

    def error(self, message: str) -> NoReturn:
        """Print `mora demo: ...` and exit."""
        self.exit(2, f"{self.prog}: {one_line(message)}\n")
