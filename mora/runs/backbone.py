"""A pretrained CLIP with its preprocessing and tokenizer, by name: the built-in tiny one, or any of open_clip."""

from __future__ import annotations

import difflib
import hashlib
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mora.adapters.record import towers_in
from mora.data.sources.drawings import cache_folder
from mora.runs.described import SCHEMES, check_text_tower, make_tokenizer, no_code_from_elsewhere, read_description
from mora.runs.preparing import Preparing
from mora.system.files import regular_file
from mora.system.machine import need

if TYPE_CHECKING:
    from PIL.Image import Image

TINY, TINY_AUDIO = "tiny", "tiny-audio"
AUDIO_WEIGHTS = "tiny-audio.safetensors"  # in the user's cache folder
TOKEN_POLICIES = ("official", "plain")


@dataclass(frozen=True)
class Backbone:
    """A CLIP and what belongs to it; or another model with towers, of any modalities.

    A model with further towers brings one function for each in `others`, from what `mora.data.Modality.decode` returns
    to the tensor that the tower takes. Where the towers of `model` are not known by its class, its attribute
    `mora_towers` names them, as `mora.patch(model, towers=...)` would: {**towers_of(clip), "audio": mora.Tower(...)}.

    Attributes:
        model: an open_clip or Hugging Face CLIP, or any model with towers, in eval mode, not patched.
        preprocess: a PIL image to float32 [3, H, W].
        tokenizer: texts to int64 [B, L].
        name: "tiny", an open_clip name, or a name of your own.
        pretrained: open_clip's tag or a file of weights; None where the name says it all.
        image_size: (H, W).
        missing_image: [3, H, W], a white image through `preprocess`.
        empty_text: int64 [L], the tokens of "".
        others: preprocessing of the modalities beside image and text, by name: one value to one tensor, of one shape
            for all values; picklable, for it runs in worker processes.
        missing: what stands for a missing input of these; a tower's own substitute where it is not here.
    """

    model: nn.Module
    preprocess: Callable[[Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    name: str
    pretrained: str | None
    image_size: tuple[int, int]
    missing_image: Tensor
    empty_text: Tensor
    others: Mapping[str, Callable[[Any], Tensor]] = field(default_factory=dict)
    missing: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        preprocess: Any,
        tokenizer: Any,
        name: str,
        pretrained: str | None = None,
        others: Mapping[str, Callable[[Any], Tensor]] | None = None,
        missing: Mapping[str, Tensor] | None = None,
    ) -> Backbone:
        """A backbone of your own: substitutes and image size are found by trying."""
        white = white_image(preprocess)
        size = (white.shape[-2], white.shape[-1])
        empty = tokenizer([""])[0]
        more = dict(others or {}), dict(missing or {})
        return cls(model.eval(), preprocess, tokenizer, name, pretrained, size, white, empty, *more)

    def substitutes(self) -> dict[str, Tensor]:
        """One input for each tower, in their order: what stands for a missing one."""
        own = {"image": self.missing_image, "text": self.empty_text, **self.missing}
        towers = towers_in(self.model)
        return {name: own[name] if name in own else tower.substitute(self.model) for name, tower in towers.items()}

    def preparing(self, tokenize: Callable[[Sequence[str]], Tensor]) -> Preparing:
        """How rows are prepared for its towers, texts by a tokenizer under the run's token policy."""
        return Preparing(self.preprocess, tokenize, self.others, self.substitutes())

    def fingerprint(self) -> str:
        """SHA-256 of the weights (names, shapes, dtypes, bytes), in hexadecimal; of the untouched model."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            flat = tensor.detach().cpu().contiguous()
            total.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
            total.update(memoryview(flat.reshape(-1).view(torch.uint8).numpy()))
        return total.hexdigest()


def white_image(preprocess: Callable[[Image], Tensor]) -> Tensor:
    """The substitute of a missing image: a white picture, preprocessed, float32 [3, H, W]."""
    return preprocess(need("PIL.Image", "reading images").new("RGB", (256, 256), "white"))


def load_backbone(name: str, pretrained: str | None = None) -> Backbone:
    """Load a CLIP by name, on the CPU, in float32 and eval mode.

    Args:
        name: "tiny", the built-in one; "tiny-audio", the same with an audio tower; a name of open_clip,
            "ViT-B-16-quickgelu"; or "hf-hub:..." / "local-dir:...".
        pretrained: a tag of that name, "openai", or a file of weights (with "tiny-audio" the audio tower's); not for
            "tiny" and names with a scheme.

    Raises:
        ValueError: unknown name or tag; the message lists what there is.
        ImportError: open_clip is not installed.
        OSError: the weights could not be fetched or read.
    """
    if name == TINY:
        from mora import tiny

        if pretrained is not None:
            raise ValueError(
                f"pretrained: got {pretrained!r} with backbone 'tiny', expected none: its weights are built in"
            )
        model, preprocess, tokenizer = tiny.load()
        return Backbone.of(model, preprocess, tokenizer, name)
    if name == TINY_AUDIO:
        return tiny_audio(pretrained)
    open_clip = need("open_clip", "a backbone other than 'tiny'")
    if not name.startswith(SCHEMES):
        check_name(name, pretrained, open_clip)
    elif pretrained is not None:
        raise ValueError(f"pretrained: got {pretrained!r} with {name!r}, expected none: that name brings its weights")
    return Backbone.of(*make(name, pretrained), name, pretrained)


def tiny_audio(pretrained: str | None = None) -> Backbone:
    """The tiny CLIP with an audio tower, whose weights are a file: `pretrained`, or what `mora demo --audio` left.

    Raises ValueError where there is none, or one of another tower.
    """
    from mora.data.audio import LogMel
    from mora.tiny import audio

    path = cache_folder() / AUDIO_WEIGHTS if pretrained is None else Path(pretrained)
    if not path.is_file():
        raise ValueError(
            f"pretrained: got {path} for backbone {TINY_AUDIO!r}, which is not there, expected the audio tower's "
            "weights: mora demo --audio --data FOLDER trains them (docs/audio.md)"
        )
    features = LogMel()
    others, missing = {"audio": features}, {"audio": features.silence()}
    return Backbone.of(*audio.load(path), TINY_AUDIO, pretrained, others, missing)


def make(name: str, pretrained: str | None = None) -> tuple[nn.Module, Any, Any]:
    """(model, preprocess, tokenizer) of a name that open_clip knows; nothing that a description says runs code.

    Raises ValueError for a description that is refused, or weights that do not fit; OSError and ImportError pass.
    """
    import open_clip

    config = read_description(name)["model_cfg"] if name.startswith(SCHEMES) else open_clip.get_model_config(name)
    try:
        if text_tower := config["text_cfg"].get("hf_model_name"):
            check_text_tower(text_tower)
        # random state is left alone: fresh weights are drawn before the pretrained ones replace them
        with torch.random.fork_rng(devices=[]), no_code_from_elsewhere():
            model, _, preprocess = open_clip.create_model_and_transforms(
                name, pretrained=pretrained, weights_only=True, require_pretrained=True
            )
        return model, preprocess, make_tokenizer(name, config)
    except (OSError, ImportError):
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"backbone: {name!r} with weights {pretrained!r} cannot be loaded: not a checkpoint of plain tensors, and "
            "files that can run code are not read"
        ) from error
    except Exception as error:  # of open_clip, timm, transformers or torch, about files that they did not write
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"backbone: {name!r} with weights {pretrained!r} cannot be loaded: {reason}") from error


def check_name(name: str, pretrained: str | None, open_clip: Any) -> None:
    """Raise ValueError unless open_clip knows the name, and the tag (or file) of its weights is given."""
    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        raise ValueError(
            f"backbone: got {name!r}, expected 'tiny' or one of open_clip's {len(known)} names, such as "
            f"{', '.join(map(repr, near))} (open_clip.list_models())"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is not None and pretrained not in tags and os.path.lexists(pretrained):
        regular_file(Path(pretrained))
    elif pretrained is None or pretrained not in tags:
        expected = ", ".join(map(repr, tags)) if tags else "a file of weights (open_clip offers none for it)"
        raise ValueError(f"pretrained: got {pretrained!r} for backbone {name!r}, expected {expected}, or a file")


def with_policy(
    tokenizer: Callable[[list[str]], Tensor], policy: str, empty_text: Tensor
) -> Callable[[Sequence[str]], Tensor]:
    """The tokenizer under a token policy: texts to int64 [B, L].

    "official" repeats a quirk of the published runs: a text that fills the context ends one token earlier, its last
    content token overwritten by the end token. Raises ValueError for an unknown policy, or for "official" with tokens
    that do not end the way CLIP's do.
    """
    if policy not in TOKEN_POLICIES:
        raise ValueError(f"token_policy: got {policy!r}, expected one of {', '.join(map(repr, TOKEN_POLICIES))}")
    if policy == "plain":
        return Tokenize(tokenizer)
    end = int(empty_text.max())
    if int(empty_text[1]) != end:
        raise ValueError(
            "token_policy: got 'official', expected 'plain': the tokenizer does not end texts as CLIP's does"
        )
    return Tokenize(tokenizer, end)


@dataclass(frozen=True)
class Tokenize:
    """Texts to int64 [B, L]; with `end`, a text that fills the context ends one token earlier. Pickled for workers."""

    tokenizer: Callable[[list[str]], Tensor]
    end: int | None = None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts))
        if self.end is None:
            return tokens
        tokens = tokens.clone()
        full = (tokens == self.end).int().argmax(dim=-1) == tokens.shape[1] - 1
        tokens[full, -2] = self.end
        return tokens
