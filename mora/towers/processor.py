"""What a Hugging Face model's own image processor says, where its files lie beside the model or in the hub's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mora.system.files import read_json
from mora.system.messages import shown

FILES = ("preprocessor_config.json", "processor_config.json")
LARGEST = 1 << 20  # bytes; such a file has a few lines

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def normalisation(*models: Any) -> Normalisation | None:
    """(mean, std) by channel after pixels were scaled to [0, 1], of the first model whose processor is here, or None.

    Nothing is fetched and nothing is executed. Raises ValueError for a file that does not hold what it should.
    """
    for model in models:
        for name in FILES:
            path = beside(model, name)
            settings = {} if path is None else read_json(path, LARGEST)
            nested = settings.get("image_processor")
            settings = nested if isinstance(nested, dict) else settings
            if "image_mean" in settings or settings.get("do_normalize") is False:
                return numbers(settings, str(path))
    return None


def beside(model: Any, name: str) -> Path | None:
    """Where file `name` of the folder or hub repository lies that a model was loaded from; None when it is not here."""
    source = str(getattr(model, "name_or_path", "") or "")
    if not source:
        return None
    path = Path(source) / name
    if path.is_file():
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    try:
        found = try_to_load_from_cache(source, name, revision=commit)
    except (HFValidationError, ValueError):
        return None
    return Path(found) if isinstance(found, str) else None


def numbers(settings: dict[str, Any], where: str) -> Normalisation:
    """The two triples; ValueError when they are none."""
    if settings.get("do_normalize") is False:
        return (0.0,) * 3, (1.0,) * 3
    triples = []
    for key in ("image_mean", "image_std"):
        values = settings.get(key)
        values = [values] * 3 if isinstance(values, (int, float)) else values
        if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
            raise ValueError(f"{where}: got {key} {shown(values)}, expected three numbers")
        triples.append(tuple(map(float, values)))
    if not all(triples[1]):
        raise ValueError(f"{where}: got image_std {list(triples[1])}, expected numbers other than 0")
    return triples[0], triples[1]
