"""Text towers that are an encoder of `transformers`, alone or within an open_clip model; padding is masked.

They run whole. Which tokens are padding is said by the configuration's `pad_token_id`, so inputs are token ids alone.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mora.towers.kinds import model_types
from mora.towers.open_clip import OtherText
from mora.towers.slots import Slot
from mora.towers.stacks import config_of, stack_of
from mora.towers.tokenizer import empty_text
from mora.towers.tower import Tower, descend

LENGTH = 77  # tokens of a substitute: open_clip's own default; a longer text's is filled up with padding
BEGIN_END, END = ("bos_token_id", "eos_token_id"), ("eos_token_id",)
# What tokenizers put around a text, by `model_type`, where its configuration says which tokens these are. BERT's
# configurations do not name [CLS] and [SEP], nor M2M100's the token of its source language.
AROUND = {
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), BEGIN_END),
    **dict.fromkeys(("altclip_text_model", "clap_text_model"), BEGIN_END),
    **dict.fromkeys(("t5", "mt5", "umt5"), END),
}
# Positions of these begin behind the padding token's id.
OFFSET = ("roberta", "xlm-roberta", "camembert", "altclip_text_model", "clap_text_model")


@dataclass(frozen=True)
class EncoderText(Tower):
    """A tower of token ids [B, L] whose padding nothing attends to.

    Attributes:
        root: dotted path of the encoder in the model, "" for the model itself.
    """

    root: str

    @abstractmethod
    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        """Un-normalised embeddings [B, e] of token ids [B, L], padding masked."""

    def slots(self, model: Any) -> list[Slot]:
        return stack_of(model, self.root).slots(self.modality, model, self.root)

    def encoder(self, model: Any) -> Any:
        """The encoder itself."""
        return descend(model, self.root)

    def mask(self, model: Any, inputs: Tensor) -> Tensor:
        """int64 [B, L], 0 at padding."""
        pad = self.padding(model)
        return torch.ones_like(inputs) if pad is None else (inputs != pad).long()

    def padding(self, model: Any) -> int | None:
        """The padding token by the configuration; None where it names none."""
        pad = getattr(self.encoder(model).config, "pad_token_id", None)
        return None if pad is None else int(pad)

    def length(self, model: Any) -> int:
        """Tokens of a substitute: `LENGTH`, or as many as the encoder has positions for."""
        config = self.encoder(model).config
        most = getattr(config, "max_position_embeddings", None) or LENGTH
        if any(name in OFFSET for name in model_types(config)):
            most -= (self.padding(model) or 0) + 1
        return min(LENGTH, most)

    def substitute(self, model: Any) -> Tensor:
        """Token ids of "", then padding, int64 [L]; ValueError where nothing says what they are."""
        encoder = self.encoder(model)
        config, pad = encoder.config, self.padding(model)
        tokens = empty_text(encoder, model) or self.around(config)
        size, length = config.vocab_size, self.length(model)
        if not tokens or pad is None or not all(0 <= token < size for token in tokens) or len(tokens) > length:
            known = " and ".join(f"{name} {getattr(config, name, None)!r}" for name in (*BEGIN_END, "pad_token_id"))
            raise ValueError(
                f"empty_{self.modality}: got None for a {type(encoder).__name__} whose configuration says {known}, "
                'which does not tell its tokens of "", expected tokenizer([""])[0]'
            )
        return torch.tensor([*tokens, *[pad] * (length - len(tokens))])

    def around(self, config: Any) -> list[int]:
        """The tokens around a text by the configuration; [] where it does not say."""
        fields = next((AROUND[name] for name in model_types(config) if name in AROUND), ())
        tokens = [getattr(config, name, None) for name in fields]
        return [token for token in tokens if isinstance(token, int)] if None not in tokens else []

    def random(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random token ids [batch, L] that end at places of their own, then padding."""
        length, pad = self.length(model), self.padding(model)
        size = config_of(self.encoder(model)).vocab_size
        tokens = torch.randint(0, size, (batch, length), generator=generator)
        if pad is None:
            return tokens
        tokens = tokens.where(tokens != pad, torch.tensor((pad + 1) % size))
        ends = (torch.arange(1, batch + 1) * length // (batch + 1)).clamp(min=2)
        return tokens.masked_fill(torch.arange(length) >= ends[:, None], pad)


@dataclass(frozen=True)
class OpenClipEncoder(EncoderText):
    """`open_clip.hf_model.HFTextEncoder`, which makes the mask itself."""

    kind: ClassVar[str] = "open_clip text of transformers"

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        embedded: Tensor = model.encode_text(inputs, normalize=False)
        return embedded

    def width(self, model: Any) -> int:
        return int(model.text.output_dim)


def of_open_clip(model: Any) -> Tower:
    """The text tower of an open_clip model that is not open_clip's own transformer."""
    encoder = hasattr(descend(model, "text.transformer"), "config")
    return OpenClipEncoder("text", "text.transformer") if encoder else OtherText("text")
