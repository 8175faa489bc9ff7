"""Texts as a modality: the cell of a manifest is the text."""

from __future__ import annotations

from mora.data.modality import BrokenInputError, Modality

TEXTS = ("", "a photo of a cat", "Crème brûlée, 2 cups \N{DANGO}", "WORDS " * 120, "tail " * 76 + "end")


class Texts(Modality):
    """Texts in any language; a blank one is missing."""

    name, plural, written = "text", "texts", True

    def decode(self, data: bytes, where: str) -> str:
        """The text; BrokenInputError where it is no UTF-8."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise BrokenInputError(f"{where}: the text cannot be read: {error}, expected UTF-8") from error

    def probes(self) -> tuple[str, ...]:
        """Texts that tell one tokenizer, and one token policy, from another."""
        return TEXTS
