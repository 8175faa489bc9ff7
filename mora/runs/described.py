"""A CLIP that a folder or a hub repository describes itself: the description is data, and is checked before any use.

open_clip hands much of `open_clip_config.json` on to other libraries: names of towers and tokenizers, keyword arguments
of tokenizers. Some of these name code (`trust_remote_code`, `auto_map`, attention kernels of a hub) or a file anywhere.
Here only sizes, switches and names pass, every file is regular, and code from elsewhere stays off.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mora.system.files import read_json, regular_file
from mora.system.messages import listed, shown

LOCAL, HUB = "local-dir:", "hf-hub:"
SCHEMES = (HUB, LOCAL)  # names that bring their own weights
DESCRIPTION = "open_clip_config.json"
# What a tokenizer may be told; `bpe_path` is a file of the folder itself.
TOKENIZER_OPTIONS = {"bpe_path": str, "clean": str, "language": str, "strip_sep_token": bool}
LARGEST_MERGES = 1 << 26  # bytes, unpacked
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
TIMM_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
KERNELS = (None, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
LARGEST_TOWER = 1 << 34  # width^2 x layers; the largest CLIP towers have 2^27
LARGEST_NUMBER, MOST_LAYERS, LARGEST_IMAGE = 1 << 24, 1024, 8192
INTERPOLATIONS, RESIZE_MODES = ("bicubic", "bilinear", "random"), ("shortest", "longest", "squash")


def read_description(name: str) -> dict[str, Any]:
    """The checked description of "local-dir:FOLDER" or "hf-hub:OWNER/NAME".

    Raises ValueError that names the setting which is wrong or could run code; OSError where there is none.
    """
    if name.startswith(LOCAL):
        folder = Path(name.removeprefix(LOCAL))
        if not name.removeprefix(LOCAL) or not folder.is_dir():
            raise FileNotFoundError(f"backbone: got {name!r}, which is no folder, expected one with {DESCRIPTION}")
        for entry in folder.iterdir():
            if entry.exists() and not entry.is_dir():  # a link to nothing is opened by nobody
                regular_file(entry)
        path = folder / DESCRIPTION
    else:
        from open_clip.pretrained import download_pretrained_from_hf

        if not HUB_NAME.fullmatch(name.removeprefix(HUB)):
            raise ValueError(f"backbone: got {name!r}, expected {HUB}OWNER/NAME")
        path = Path(download_pretrained_from_hf(name.removeprefix(HUB), filename=DESCRIPTION))
    found = read_json(path)
    check_model(str(path), found.get("model_cfg"))
    check_preprocessing(str(path), found.get("preprocess_cfg", {}))
    return found


def check_model(where: str, model: Any) -> None:
    """Raise ValueError unless `model_cfg` holds sizes, switches and plain names of towers and tokenizers."""
    if not isinstance(model, dict):
        raise ValueError(f"{where}: model_cfg is {shown(model)}, expected an object")
    towers: dict[str, Any] = {part: model.get(part) for part in ("vision_cfg", "text_cfg")}
    for part, given in towers.items():
        if not isinstance(given, dict):
            raise ValueError(f"{where}: model_cfg.{part} is {shown(given)}, expected an object")
    check_numbers(where, "model_cfg", model)
    for part, given in towers.items():
        width, layers = given.get("width"), given.get("layers")
        if isinstance(width, int) and isinstance(layers, int) and width**2 * layers > LARGEST_TOWER:
            raise ValueError(f"{where}: {part} has width {width:,} in {layers:,} layers, expected what fits in memory")
    for part, key, form in (
        ("text_cfg", "hf_model_name", HUB_NAME),
        ("text_cfg", "hf_tokenizer_name", HUB_NAME),
        ("vision_cfg", "timm_model_name", TIMM_NAME),
    ):
        given = towers[part].get(key)
        if given and not (isinstance(given, str) and form.fullmatch(given)):
            raise ValueError(f"{where}: {part}.{key} is {shown(given)}, expected a name, not a path or an address")
    options = towers["text_cfg"].get("tokenizer_kwargs") or {}
    if not isinstance(options, dict):
        raise ValueError(f"{where}: text_cfg.tokenizer_kwargs is {shown(options)}, expected an object")
    if unknown := sorted(set(options) - set(TOKENIZER_OPTIONS)):
        raise ValueError(
            f"{where}: text_cfg.tokenizer_kwargs has {listed(map(repr, unknown))}, expected some of "
            f"{', '.join(TOKENIZER_OPTIONS)}: others can run code or read other files, and are refused"
        )
    for key, value in options.items():
        if not isinstance(value, TOKENIZER_OPTIONS[key]) or (key == "bpe_path" and Path(str(value)).name != value):
            wanted = "a file of this folder" if key == "bpe_path" else f"a {TOKENIZER_OPTIONS[key].__name__}"
            raise ValueError(f"{where}: tokenizer_kwargs.{key} is {shown(value)}, expected {wanted}")


def check_numbers(where: str, place: str, value: Any) -> None:
    """Raise ValueError for a number that no CLIP has: it would take all memory or time."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_numbers(where, f"{place}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            check_numbers(where, place, inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        most = MOST_LAYERS if place.endswith(".layers") else LARGEST_NUMBER
        if not abs(value) <= most:
            raise ValueError(f"{where}: {place} is {shown(value)}, expected at most {most:,}")


def check_preprocessing(where: str, given: Any) -> None:
    """Raise ValueError unless `preprocess_cfg` is what open_clip makes a transform of."""
    if not isinstance(given, dict):
        raise ValueError(f"{where}: preprocess_cfg is {shown(given)}, expected an object")
    size = given.get("size", 1)
    sides = size if isinstance(size, list) else [size]
    if len(sides) not in (1, 2) or not all(_whole(side, 1, LARGEST_IMAGE) for side in sides):
        raise ValueError(f"{where}: preprocess_cfg.size is {shown(size)}, expected 1 to {LARGEST_IMAGE:,} pixels")
    for key in ("mean", "std"):
        numbers = given.get(key)
        if numbers is not None and not (
            isinstance(numbers, list)
            and len(numbers) == 3
            and all(_finite(number) and (key == "mean" or number > 0) for number in numbers)
        ):
            raise ValueError(f"{where}: preprocess_cfg.{key} is {shown(numbers)}, expected three numbers")
    for key, choices in (("mode", ("RGB",)), ("interpolation", INTERPOLATIONS), ("resize_mode", RESIZE_MODES)):
        if given.get(key) is not None and given[key] not in choices:
            raise ValueError(f"{where}: preprocess_cfg.{key} is {shown(given[key])}, expected {' or '.join(choices)}")
    if (fill := given.get("fill_color")) is not None and not _whole(fill, 0, 255):
        raise ValueError(f"{where}: preprocess_cfg.fill_color is {shown(fill)}, expected 0 to 255")


def check_text_tower(name: str) -> None:
    """Raise ValueError when the configuration of a Hugging Face text tower names kernels of a hub or quantised weights.

    Code of its own (`auto_map`) is refused by transformers inside `no_code_from_elsewhere`.
    """
    from transformers import PretrainedConfig

    config, _ = PretrainedConfig.get_config_dict(name)
    for key, value in _inside(config):
        if key.endswith("attn_implementation") and value not in KERNELS:
            raise ValueError(f"backbone: config.json of {name!r} sets {key} to {shown(value)}: code from elsewhere")
        if key in ("experts_implementation", "quantization_config") and value:
            raise ValueError(f"backbone: config.json of {name!r} sets {key}, expected plain weights")


def make_tokenizer(name: str, model: Mapping[str, Any]) -> Any:
    """open_clip's tokenizer of a model with configuration `model`, remote code off, whatever its files ask for."""
    import open_clip

    text = model.get("text_cfg") or {}
    options = text.get("tokenizer_kwargs") or {}
    given: dict[str, Any] = {}
    if text.get("hf_tokenizer_name"):
        given["trust_remote_code"] = False
    elif "bpe_path" in options:
        if not name.startswith(LOCAL):
            raise ValueError(f"backbone: {name!r} has a bpe_path, expected one in a local folder only")
        given["bpe_path"] = str(check_merges(Path(name.removeprefix(LOCAL)) / options["bpe_path"]))
    with no_code_from_elsewhere():
        return open_clip.get_tokenizer(name, **given)


def check_merges(path: Path) -> Path:
    """Return the path of gzipped merges; ValueError unless they are, and small enough when unpacked."""
    try:
        with gzip.open(regular_file(path)) as file:
            size = len(file.read(LARGEST_MERGES + 1))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: got a file that is not gzip ({error}), expected gzipped merges") from error
    if size > LARGEST_MERGES:
        raise ValueError(f"{path}: got more than {LARGEST_MERGES:,} bytes unpacked, expected the merges of a tokenizer")
    return path


@contextmanager
def no_code_from_elsewhere() -> Iterator[None]:
    """Within the block transformers neither runs code of a folder or hub nor asks on the terminal whether it may."""
    try:
        from transformers import dynamic_module_utils as dynamic
    except ImportError:
        yield
        return
    before, dynamic.TIME_OUT_REMOTE_CODE = dynamic.TIME_OUT_REMOTE_CODE, 0  # 0: an error instead of a question
    try:
        yield
    finally:
        dynamic.TIME_OUT_REMOTE_CODE = before


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of an object and of the objects inside it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _inside(inner)


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6 and math.isfinite(value)
