"""The folders other libraries load: `open_clip` by "local-dir:...", `transformers` by `from_pretrained`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from mora.adapters.patching import unpatch
from mora.adapters.record import is_patched
from mora.checkpoint.tensors import check_tensors, largest_file
from mora.export.conversion import to_hugging_face
from mora.runs.backbone import TINY, Backbone, make, white_image
from mora.runs.described import LOCAL, read_description
from mora.system.files import pack_tensors, read_bytes, read_tensors, write_bytes, write_json

OPEN_CLIP, HUGGING_FACE, OWN = "open_clip", "hugging_face", "state_dict"
FORMATS = (OPEN_CLIP, HUGGING_FACE, OWN)
OWN_WEIGHTS = "model.safetensors"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
MERGES = "merges.txt.gz"


class Loaded(NamedTuple):
    """What a written folder loads as: the model in eval mode, and the substitutes that its own files make."""

    model: nn.Module
    missing: Mapping[str, Tensor]


def write_open_clip(folder: Path, model: nn.Module, backbone: Backbone) -> None:
    """Weights under the keys of an untouched model, its configuration, and the tokenizer's files where it has any.

    Raises ValueError for a backbone that open_clip has no configuration of.
    """
    config = open_clip_config(model, backbone)
    tokenizer: Any = backbone.tokenizer
    if (merges := merges_of(backbone)) is not None:
        write_bytes(folder / MERGES, merges)
    elif hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    write_bytes(folder / WEIGHTS, pack_tensors(model.state_dict(), {"format": "pt"}))
    write_json(folder / CONFIG, config)


def merges_of(backbone: Backbone) -> bytes | None:
    """The file of byte-pair merges that a backbone brings; None where open_clip has them itself."""
    if backbone.name == TINY:
        return (resources.files("mora.tiny") / MERGES).read_bytes()
    if not backbone.name.startswith(LOCAL):
        return None
    text = read_description(backbone.name)["model_cfg"]["text_cfg"]
    name = None if text.get("hf_tokenizer_name") else (text.get("tokenizer_kwargs") or {}).get("bpe_path")
    return read_bytes(Path(backbone.name.removeprefix(LOCAL)) / name) if name else None


def open_clip_config(model: Any, backbone: Backbone) -> dict[str, Any]:
    """`model_cfg` and `preprocess_cfg` as open_clip reads them."""
    if backbone.name == TINY:
        from mora import tiny

        given = tiny.config()
        text = {**given["model_cfg"]["text_cfg"], "tokenizer_kwargs": {"bpe_path": MERGES}}
        preprocess = {"size": tiny.IMAGE_SIZE, **given["preprocess_cfg"], "interpolation": "bicubic"}
        return {
            "model_cfg": {**given["model_cfg"], "text_cfg": text},
            "preprocess_cfg": {**preprocess, "resize_mode": "longest", "fill_color": 255},
        }
    import open_clip

    config = open_clip.get_model_config(backbone.name)
    if config is not None and merges_of(backbone) is not None:
        config["text_cfg"]["tokenizer_kwargs"]["bpe_path"] = MERGES
    if config is None:
        raise ValueError(
            f"format: open_clip has no configuration of the backbone {backbone.name!r}, expected one of its names; "
            "mora.merge in Python gives the plain model"
        )
    return {"model_cfg": config, "preprocess_cfg": dict(model.visual.preprocess_cfg)}


def read_open_clip(folder: Path, backbone: Backbone) -> Loaded:
    """Load the folder as its model card says: with open_clip alone."""
    model, preprocess, tokenizer = make(f"{LOCAL}{folder}")
    return Loaded(model.eval(), {"image": white_image(preprocess), "text": tokenizer([""])[0]})


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers within the block."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def write_hugging_face(folder: Path, model: nn.Module, backbone: Backbone) -> None:
    """A `CLIPModel` with its configuration, image processor and tokenizer.

    Raises ValueError for a model that has no such form, or a tokenizer that is not CLIP's.
    """
    converted = to_hugging_face(model)
    tokenizer = hugging_face_tokenizer(backbone)
    with quiet():
        converted.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        image_processor(model, backbone).save_pretrained(folder)


def hugging_face_tokenizer(backbone: Backbone) -> Any:
    """A `CLIPTokenizer` with the vocabulary and merges of open_clip's `SimpleTokenizer`."""
    from transformers import CLIPTokenizer

    simple: Any = backbone.tokenizer
    if not hasattr(simple, "bpe_ranks"):
        raise ValueError(
            f"format: got a {type(simple).__name__} with the backbone {backbone.name!r}, expected CLIP's own tokenizer "
            "to write for Hugging Face; format='open_clip' keeps it"
        )
    begin, end = simple.all_special_ids[:2]
    names = {begin: "<|startoftext|>", end: "<|endoftext|>"}
    return CLIPTokenizer(
        vocab={names.get(index, token): index for token, index in simple.encoder.items()},
        merges=list(simple.bpe_ranks),
        model_max_length=simple.context_length,
    )


def image_processor(model: Any, backbone: Backbone) -> Any:
    """A `CLIPImageProcessor` of the same size, crop and normalisation; pictures of the tiny CLIP must be square."""
    from transformers import CLIPImageProcessor

    height, width = backbone.image_size
    shortest = getattr(model.visual, "preprocess_cfg", {}).get("resize_mode") == "shortest"
    return CLIPImageProcessor(
        size={"shortest_edge": height} if shortest else {"height": height, "width": width},
        do_center_crop=shortest,
        crop_size={"height": height, "width": width},
        image_mean=list(model.visual.image_mean),
        image_std=list(model.visual.image_std),
    )


def read_hugging_face(folder: Path, backbone: Backbone) -> Loaded:
    """Load the folder as its model card says: with transformers alone."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    processor, tokenizer = CLIPImageProcessor.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    white = white_image(lambda image: processor(image, return_tensors="pt")["pixel_values"][0])
    empty = tokenizer([""], padding="max_length", truncation=True, return_tensors="pt")["input_ids"][0]
    with quiet():
        return Loaded(CLIPModel.from_pretrained(folder).eval(), {"image": white, "text": empty})


def write_own(folder: Path, model: nn.Module, backbone: Backbone) -> None:
    """The weights of a model of any class, under the keys of an untouched one."""
    write_bytes(folder / OWN_WEIGHTS, pack_tensors(model.state_dict(), {"format": "pt"}))


def read_own(folder: Path, backbone: Backbone) -> Loaded:
    """The weights in a copy of the backbone's model, without adapters: all of them, or ValueError."""
    model = copy.deepcopy(backbone.model)
    if is_patched(model):
        unpatch(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors, _ = read_tensors(folder / OWN_WEIGHTS, largest_file(shapes))
    check_tensors(str(folder / OWN_WEIGHTS), tensors, shapes)
    model.load_state_dict(tensors)
    return Loaded(model.eval(), backbone.substitutes())


WRITERS: dict[str, Callable[[Path, nn.Module, Backbone], None]] = {
    OPEN_CLIP: write_open_clip,
    HUGGING_FACE: write_hugging_face,
    OWN: write_own,
}
READERS: dict[str, Callable[[Path, Backbone], Loaded]] = {
    OPEN_CLIP: read_open_clip,
    HUGGING_FACE: read_hugging_face,
    OWN: read_own,
}
