"""What a Hugging Face model's own tokenizer makes of "", where its file lies beside the model or in the hub's cache."""

from __future__ import annotations

from typing import Any

from mora.towers.processor import beside

FILE, LARGEST = "tokenizer.json", 1 << 26  # bytes; the largest vocabularies in use take half of it


def empty_text(*models: Any) -> list[int]:
    """Token ids of "" by the first model whose tokenizer is here; [] where none is.

    Nothing is fetched and nothing is executed. Raises ValueError for a file that is no tokenizer, or a huge one.
    """
    for model in models:
        if (path := beside(model, FILE)) is None:
            continue
        if (size := path.stat().st_size) > LARGEST:
            raise ValueError(f"{path}: got {size:,} bytes, expected a tokenizer of at most {LARGEST:,}")
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the class that the library raises is Exception itself
            raise ValueError(f"{path}: got a file that is no tokenizer ({error}), expected one") from error
        tokenizer.no_padding()
        return list(tokenizer.encode("").ids)
    return []
