"""An audio tower of open_clip's own blocks, at `audio` beside a CLIP's towers: log-mel features cut into patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mora.tiny.audio import SILENCE
from mora.towers.inputs import sides
from mora.towers.open_clip import OpenClipTower

AUDIO_BLOCKS = ("audio.transformer.resblocks",)


@dataclass(frozen=True)
class OpenClipAudio(OpenClipTower):
    """An open_clip image transformer at `model.audio` that reads features [B, 1, T, mels]; pooled as it says."""

    kind: ClassVar[str] = "open_clip audio"

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        return model.audio(inputs)

    def width(self, model: Any) -> int:
        return int(model.audio.output_dim)

    def shape(self, model: Any) -> tuple[int, int, int]:
        """(1, T, mels) of one input."""
        return 1, *sides(model.audio.image_size)

    def substitute(self, model: Any) -> Tensor:
        """Silence, [1, T, mels] float32."""
        return torch.full(self.shape(model), SILENCE)

    def random(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random features [batch, 1, T, mels] float32."""
        return torch.randn(batch, *self.shape(model), generator=generator)

    def block_arguments(self, model: Any, hidden: Tensor) -> dict[str, Any]:
        return {}

    def pooled_rows(self, model: Any, hidden: Tensor, tokens: Tensor | None) -> Tensor | None:
        first = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        return first if model.audio.attn_pool is None and model.audio.pool_type == "tok" else None

    def needs_all_tokens(self, model: Any) -> str:
        if why := super().needs_all_tokens(model):
            return why
        audio = model.audio
        return "" if audio.attn_pool is None and audio.pool_type == "tok" else "it pools every token"

    def project(self, model: Any, hidden: Tensor, rows: Tensor | None) -> Tensor:
        pooled, _ = model.audio._pool(hidden)
        return pooled if model.audio.proj is None else pooled @ model.audio.proj
