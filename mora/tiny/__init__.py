"""The built-in tiny CLIP: two small transformers pretrained on named drawings (``MODEL_CARD.md``)."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from mora.system.machine import need

if TYPE_CHECKING:
    from open_clip import CLIP, SimpleTokenizer
    from PIL.Image import Image

IMAGE_SIZE = 64
CONTEXT_LENGTH = 24
LARGEST_SIDE = 8192  # a longer picture is made smaller before it is padded: its square would take gigabytes


class Preprocess:
    """Pictures to the normalised float32 input of ``encode_image``.

    Called with a PIL image of any size and mode it pads to a square, resizes and returns
    [3, 64, 64]; called with a uint8 tensor [..., 3, 64, 64] it returns the same shape. Transparency is
    composed on white, so that a missing image is a plain white one.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def __call__(self, image: Image | Tensor) -> Tensor:
        """Normalised float32 [..., 3, 64, 64]; ``ValueError`` for a tensor of another shape or dtype."""
        pixels = image if isinstance(image, Tensor) else _pixels(image)
        side = (3, IMAGE_SIZE, IMAGE_SIZE)
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[-3:]) != side:
            got = f"{pixels.dtype} {list(pixels.shape)}"
            raise ValueError(f"image: got {got}, expected uint8 [..., 3, {IMAGE_SIZE}, {IMAGE_SIZE}]")
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return (pixels.float() / 255 - mean) / std


def _pixels(image: Image) -> Tensor:
    """A PIL image on a white square as uint8 [3, 64, 64]."""
    from PIL import Image as Pillow

    picture = image.convert("RGBA")
    if max(picture.size) > LARGEST_SIDE:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Pillow.Resampling.BICUBIC)
    side = max(picture.size)
    square = Pillow.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    small = square.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Pillow.Resampling.BICUBIC)
    flat = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    return flat.view(IMAGE_SIZE, IMAGE_SIZE, 3).permute(2, 0, 1).contiguous()


def config() -> dict[str, Any]:
    """``model_cfg`` and ``preprocess_cfg``, in the layout of open_clip's ``open_clip_config.json``."""
    text = (resources.files("mora.tiny") / "tiny.json").read_text(encoding="utf-8")
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def build(**vision: Any) -> tuple[CLIP, Preprocess]:
    """Fresh weights in the tiny architecture; ``vision`` overrides entries of ``vision_cfg``."""
    open_clip = need("open_clip", "the tiny CLIP")
    model_cfg, preprocess_cfg = config()["model_cfg"], config()["preprocess_cfg"]
    vision_cfg = {**model_cfg["vision_cfg"], **vision}
    model = open_clip.CLIP(**{**model_cfg, "vision_cfg": vision_cfg})
    mean, std = tuple(preprocess_cfg["mean"]), tuple(preprocess_cfg["std"])
    model.visual.image_mean, model.visual.image_std = mean, std
    return model, Preprocess(mean, std)


def tokenizer() -> SimpleTokenizer:
    """open_clip's byte-pair tokenizer with the tiny CLIP's own merges; 24 tokens a text."""
    with resources.as_file(resources.files("mora.tiny") / "merges.txt.gz") as path:
        made: SimpleTokenizer = need("open_clip", "the tiny CLIP").SimpleTokenizer(
            bpe_path=str(path), context_length=CONTEXT_LENGTH
        )
    return made


def load() -> tuple[CLIP, Preprocess, SimpleTokenizer]:
    """The pretrained tiny CLIP as ``(model, preprocess, tokenizer)``.

    The model is an ordinary ``open_clip.CLIP`` in float32 and eval mode: two transformers of
    ``nn.MultiheadAttention`` blocks, ``encode_image`` of [N, 3, 64, 64] and ``encode_text`` of int64
    [N, 24] giving [N, 128]. A missing image is a white one through ``preprocess``, a missing text
    ``tokenizer("")``.

    Raises:
        ImportError: open_clip is not installed.
    """
    with torch.random.fork_rng(devices=[]):  # the fresh weights are thrown away
        model, preprocess = build()
    weights = load_safetensors((resources.files("mora.tiny") / "tiny.safetensors").read_bytes())
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.eval(), preprocess, tokenizer()
