"""Partial corruption: the stated share goes, the same way every time, and what is missing stays missing."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

Image = pytest.importorskip("PIL.Image")
numpy = pytest.importorskip("numpy")

from mora.data import Corrupted, Corruption, open_dataset  # noqa: E402
from tests.data import synthetic  # noqa: E402


@given(st.floats(0, 0.99), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_patches_are_whole_cells(share: float, grid: int, width: int, height: int, seed: int) -> None:
    white = Image.new("RGB", (width, height), "white")
    damaged = Corruption(patches=share, grid=grid, seed=seed).image(white, "a")
    black = (numpy.asarray(damaged) == 0).all(axis=2)
    cells = int(share * grid * grid)
    if width % grid == height % grid == 0:
        assert black.sum() == cells * (width // grid) * (height // grid)
    assert numpy.asarray(white).min() == 255  # the original is left alone


def test_words_go_but_one_stays() -> None:
    text = " ".join(f"word{i}" for i in range(2000))
    kept = Corruption(word_drop=0.3).text(text, "a").split()
    assert 1300 < len(kept) < 1500
    assert kept == [word for word in text.split() if word in set(kept)]  # in order
    for sample in range(50):
        assert Corruption(word_drop=0.99).text("one two", str(sample)) in {"one", "two", "one two"}
    assert Corruption().text("  as  it is ", "a") == "  as  it is "


def test_a_row_is_damaged_the_same_way_every_time_and_rows_differ(tmp_path: Path) -> None:
    data = open_dataset(synthetic.arrow(tmp_path, "food101"), "train")
    corruption = Corruption(patches=0.3, word_drop=0.5, seed=3)
    first, second = Corrupted(data, corruption), Corrupted(data, corruption)
    images = [first[i].image.tobytes() for i in range(24)]
    assert images == [second[i].image.tobytes() for i in reversed(range(24))][::-1]
    assert [first[i].text for i in range(24)] == [second[i].text for i in range(24)]
    patterns = {(numpy.asarray(first[i].image) == 0).all(axis=2).tobytes() for i in range(24)}
    assert len(patterns) > 20
    other = Corrupted(data, Corruption(patches=0.3, word_drop=0.5, seed=4))
    assert other[0].image.tobytes() != images[0]


def test_a_share_of_the_rows_is_damaged(tmp_path: Path) -> None:
    white = Image.new("RGB", (16, 16), "white")
    corruption = Corruption(patches=0.5, images=0.25, word_drop=0.9, texts=0.25)
    hit = sum(corruption.image(white, str(i)).getextrema()[0][0] == 0 for i in range(1000))
    assert 200 < hit < 300
    text = "one two three four five six seven eight"
    assert 200 < sum(corruption.text(text, str(i)) != text for i in range(1000)) < 300


def test_everything_else_is_the_originals(tmp_path: Path) -> None:
    data = open_dataset(synthetic.manifest(tmp_path), "all")
    damaged = Corrupted(data, Corruption(patches=0.5, word_drop=0.5))
    assert len(damaged) == len(data) and damaged.rows == data.rows and damaged.groups() is None
    assert damaged.fingerprint == data.fingerprint and damaged.classes == data.classes
    assert torch.equal(damaged.available(), data.available()) and torch.equal(damaged.labels(), data.labels())
    assert damaged[0].text is None and damaged[3].image is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patches": 1.0}, "patches: got 1.0, expected a share from 0 to below 1"),
        ({"word_drop": -0.1}, "word_drop: got -0.1"),
        ({"images": 1.5}, "images: got 1.5, expected a share between 0 and 1"),
        ({"texts": float("nan")}, "texts: got nan"),
        ({"grid": 0}, "grid: got 0, expected at least 1 cell"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Corruption(**arguments)
