"""Towers that are an encoder of `transformers` and run whole: of images, videos, patches of images, or audio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mora.towers.hugging_face import pooled
from mora.towers.inputs import ImageInputs, sides
from mora.towers.kinds import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, IMAGES, model_types
from mora.towers.processor import beside, normalisation
from mora.towers.slots import Slot
from mora.towers.stacks import stack_of
from mora.towers.text_encoder import EncoderText
from mora.towers.tower import Tower, descend

# What the image processors of these kinds are made with; those of others say it in a file beside the model.
STATISTICS = {
    **{name: (kind.mean, kind.std) for name, kind in IMAGES.items()},
    "flava_image_model": (CLIP_MEAN, CLIP_STD),
    "blip_vision_model": (CLIP_MEAN, CLIP_STD),
    "siglip2_vision_model": (HALF, HALF),
    "vit": (HALF, HALF),
    "dinov2": (IMAGENET_MEAN, IMAGENET_STD),
    "dinov2_with_registers": (IMAGENET_MEAN, IMAGENET_STD),
}
PROJECTIONS = {
    "image": ("visual_projection", "image_projection", "text_projection"),  # ALIGN's image tower ends as wide as that
    "video": ("visual_projection",),
    "audio": ("audio_projection",),
    "text": ("text_projection",),
}
# Log-mel features of silence, in dB: `ClapFeatureExtractor` takes powers below 1e-10 for 1e-10.
SILENCE = -100.0


def width_of(model: Any, modality: str, encoder: Any) -> int:
    """What a model's projection of a modality gives; the width of its encoder where it has none."""
    for name in PROJECTIONS[modality]:
        linears = [part for part in getattr(model, name, nn.Identity()).modules() if isinstance(part, nn.Linear)]
        if linears:
            return int(linears[-1].out_features)
    config = encoder.config
    pooled_size = getattr(config, "pooler_output_size", None)  # of ViT
    return int(pooled_size or config.hidden_size)


def first(embedded: Tensor) -> Tensor:
    """The embedding [B, e] of a class that projects every token, [B, L, e]: its contrastive head reads the first."""
    return embedded[:, 0] if embedded.dim() == 3 else embedded


@dataclass(frozen=True)
class HuggingFaceEncoderText(EncoderText):
    """`get_text_features`, padding masked."""

    kind: ClassVar[str] = "transformers text encoder"

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        mask = self.mask(model, inputs)
        if "clap" in model_types(model.config):  # whose features are normalised
            return model.text_projection(model.text_model(input_ids=inputs, attention_mask=mask).pooler_output)
        return first(pooled(model.get_text_features(input_ids=inputs, attention_mask=mask)))

    def width(self, model: Any) -> int:
        return width_of(model, self.modality, self.encoder(model))


@dataclass(frozen=True)
class EncoderImage(ImageInputs):
    """`get_image_features` of images [B, 3, H, W].

    Attributes:
        root: dotted path of the encoder in the model, "" for the model itself.
    """

    root: str
    kind: ClassVar[str] = "transformers image encoder"

    def slots(self, model: Any) -> list[Slot]:
        return stack_of(model, self.root).slots(self.modality, model, self.root)

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        return first(pooled(model.get_image_features(pixel_values=inputs)))

    def width(self, model: Any) -> int:
        return width_of(model, self.modality, descend(model, self.root))

    def size(self, model: Any) -> tuple[int, int]:
        return sides(descend(model, self.root).config.image_size)

    def statistics(self, model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        encoder = descend(model, self.root)
        known = [STATISTICS[name] for name in model_types(encoder.config) if name in STATISTICS]
        if own := normalisation(model, encoder) or next(iter(known), None):
            return own
        argument = "missing_image" if self.modality == "image" else f"missing[{self.modality!r}]"
        raise ValueError(
            f"{argument}: got None for a {type(encoder).__name__} without a preprocessor_config.json "
            "beside it, expected a white input as its own processor makes it"
        )


@dataclass(frozen=True)
class EncoderVideo(EncoderImage):
    """`get_video_features` of videos [B, frames, 3, H, W]."""

    kind: ClassVar[str] = "transformers video encoder"

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        return pooled(model.get_video_features(pixel_values=inputs))

    def frames(self, model: Any) -> int:
        """Frames of a video."""
        return int(descend(model, self.root).config.num_frames)

    def substitute(self, model: Any) -> Tensor:
        """White frames, preprocessed, [frames, 3, H, W] float32."""
        return super().substitute(model).expand(self.frames(model), -1, -1, -1).clone()

    def random(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random preprocessed videos [batch, frames, 3, H, W] float32."""
        return torch.randn(batch, self.frames(model), 3, *self.size(model), generator=generator)


@dataclass(frozen=True)
class EncoderAudio(Tower):
    """CLAP's audio tower: log-mel features [B, 1, T, mels] in dB; with fusion [B, 4, T, mels].

    With fusion the four are one and the same for a sound that is not longer than the model takes; where they differ it
    is, which is what the extractor's `is_longer` says. Embeddings are those before `get_audio_features` normalises.

    Attributes:
        root: dotted path of the encoder in the model.
    """

    root: str
    kind: ClassVar[str] = "transformers audio encoder"

    def slots(self, model: Any) -> list[Slot]:
        return stack_of(model, self.root).slots(self.modality, model, self.root)

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        longer = (inputs != inputs[:, :1]).flatten(1).any(dim=1, keepdim=True)
        return model.audio_projection(descend(model, self.root)(input_features=inputs, is_longer=longer).pooler_output)

    def width(self, model: Any) -> int:
        return width_of(model, self.modality, descend(model, self.root))

    def shape(self, model: Any) -> tuple[int, int, int]:
        """(channels, T, mels) of one input: T by the extractor beside the model, by default that of ten seconds."""
        from mora.system.files import read_json

        config = descend(model, self.root).config
        path = beside(model, "preprocessor_config.json")
        settings = {} if path is None else read_json(path)
        seconds, rate, hop = (
            int(settings.get(name, default))
            for name, default in (("max_length_s", 10), ("sampling_rate", 48000), ("hop_length", 480))
        )
        most = config.spec_size * (config.spec_size // config.num_mel_bins)
        return 4 if config.enable_fusion else 1, min(seconds * rate // hop + 1, most), config.num_mel_bins

    def substitute(self, model: Any) -> Tensor:
        """Silence, [1 or 4, T, mels] float32."""
        return torch.full(self.shape(model), SILENCE)

    def random(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random features [batch, 1 or 4, T, mels] float32."""
        return torch.randn(batch, *self.shape(model), generator=generator)


@dataclass(frozen=True)
class NaflexImage(EncoderImage):
    """SigLIP 2's images of any aspect ratio: patches, a mask and a shape, in one tensor as `naflex` packs them."""

    kind: ClassVar[str] = "transformers image encoder of patches"

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        patches, mask, shapes = inputs[..., :-3], inputs[..., -3], inputs[:, 0, -2:]
        output = model.get_image_features(
            pixel_values=patches, pixel_attention_mask=mask.int(), spatial_shapes=shapes.round().long()
        )
        return pooled(output)

    def patches(self, model: Any) -> tuple[int, int]:
        """(patches of an image, numbers of a patch)."""
        config = descend(model, self.root).config
        return int(config.num_patches), int(config.num_channels * config.patch_size**2)

    def substitute(self, model: Any) -> Tensor:
        """A white square, [L, d + 3] float32."""
        length, numbers = self.patches(model)
        mean, std = (torch.tensor(each).repeat(numbers // len(each)) for each in self.statistics(model))
        return self.squares(model, ((1.0 - mean) / std).expand(1, length, numbers))[0]

    def random(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random squares [batch, L, d + 3] float32."""
        return self.squares(model, torch.randn(batch, *self.patches(model), generator=generator))

    def squares(self, model: Any, patches: Tensor) -> Tensor:
        """Patches [B, L, d] as square images."""
        batch, length, _ = patches.shape
        side = int(length**0.5)
        mask = torch.arange(length).expand(batch, -1) < side**2
        return naflex(patches, mask, torch.full((batch, 2), side))


def naflex(pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> Tensor:
    """One tensor [B, L, d + 3] of what SigLIP 2's processor gives: the form in which its image tower takes images.

    Args:
        pixel_values: patches [B, L, d].
        pixel_attention_mask: [B, L], 1 where a patch is there.
        spatial_shapes: [B, 2], rows and columns of patches; at most 256, the whole numbers that bfloat16 holds.

    Raises ValueError for shapes that do not agree.
    """
    batch, length = pixel_values.shape[:2]
    if tuple(pixel_attention_mask.shape) != (batch, length) or tuple(spatial_shapes.shape) != (batch, 2):
        raise ValueError(
            f"pixel_attention_mask, spatial_shapes: got shapes {tuple(pixel_attention_mask.shape)} and "
            f"{tuple(spatial_shapes.shape)}, expected {(batch, length)} and {(batch, 2)}"
        )
    if bool((spatial_shapes > 256).any()):
        raise ValueError(f"spatial_shapes: got {int(spatial_shapes.max())}, expected at most 256 patches a side")
    columns = torch.cat([pixel_attention_mask[..., None], spatial_shapes[:, None].expand(-1, length, -1)], dim=-1)
    return torch.cat([pixel_values, columns.to(pixel_values)], dim=-1)
