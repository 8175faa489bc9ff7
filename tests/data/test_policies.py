"""Missing tables of any modalities: how they are written, drawn, kept, and met by natural absence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mora.data import Missing, Presence, draw_table, load_table, parse_missing, presence_of, save_table
from mora.data.dataset import Dataset
from mora.data.drawing import draw_presence
from mora.data.missing import missing_table
from mora.data.tables import codes_of

THREE = ("image", "text", "audio")
shares = st.floats(0, 1)


class Told(Dataset):
    """A data set that knows which modalities its rows have, and nothing else."""

    name, split, classes, multi_label, metric = "told", "train", ("a", "b"), False, "accuracy"

    def __init__(self, mask, modalities=THREE):
        self.modalities, self.mask, self.fingerprint = modalities, torch.tensor(mask), f"told {len(mask)}"

    def __len__(self):
        return len(self.mask)

    def __getitem__(self, index):
        raise NotImplementedError

    def labels(self):
        return torch.zeros(len(self), dtype=torch.int64)

    def present(self):
        return Presence(self.modalities, self.mask.bool())


@given(st.integers(0, 80), st.lists(shares, min_size=2, max_size=4), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_rates_by_modality_are_exact_and_leave_no_row_empty(rows, rates, seed):
    names = ("image", "text", "audio", "smell")[: len(rates)]
    missing = Missing("each", max(rates), rates=tuple(zip(names, rates, strict=True)))
    numbers = {name: int(rows * rate) for name, rate in zip(names, rates, strict=True)}
    if sum(numbers.values()) > rows * (len(names) - 1):
        with pytest.raises(ValueError, match="expected at most .*: every row keeps one"):
            draw_presence(rows, names, missing, seed)
        return
    found = draw_presence(rows, names, missing, seed)
    assert found.missing == numbers and bool(found.mask.any(dim=1).all())
    assert torch.equal(found.mask, draw_presence(rows, names, missing, seed).mask)
    more = draw_presence(rows, (*names, "touch"), missing, seed)
    assert more.missing == {**numbers, "touch": 0}


@given(st.integers(0, 80), shares, st.integers(2, 5), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_any_takes_a_share_of_all_inputs(rows, rate, count, seed):
    names = ("image", "text", "audio", "smell", "touch")[:count]
    taken = int(rows * count * rate)
    if taken > rows * (count - 1):
        with pytest.raises(ValueError, match="expected at most .*: every row keeps one"):
            draw_presence(rows, names, Missing("any", rate), seed)
        return
    found = draw_presence(rows, names, Missing("any", rate), seed)
    assert int((~found.mask).sum()) == taken and bool(found.mask.any(dim=1).all())


@given(st.integers(0, 80), shares, st.integers(3, 5), st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_both_takes_exactly_one_from_each_row_in_equal_parts(rows, rate, count, seed):
    names = ("image", "text", "audio", "smell", "touch")[:count]
    found = draw_presence(rows, names, Missing("both", rate), seed)
    assert sorted((~found.mask).sum(dim=1).unique().tolist()) in ([], [0], [1], [0, 1])
    assert sum(found.missing.values()) == int(rows * rate)
    assert max(found.missing.values()) - min(found.missing.values()) <= 1


def test_every_subset_comes():
    found = draw_presence(400, THREE, Missing("any", 0.5), 0)
    assert len(found.mask.unique(dim=0)) == 7
    lost = draw_presence(10, THREE, Missing("audio+text", 0.7), 3)
    assert lost.missing == {"image": 0, "text": 7, "audio": 7} and lost.complete == 3


def test_image_and_text_under_published_kinds_are_drawn_as_published():
    for kind, share in (("both", 0.25), ("both", 0.5), ("text", 0.5), ("image", 0.5)):
        found = draw_presence(50, ("image", "text"), Missing(kind, 0.7, share), 9)
        assert torch.equal(codes_of(found), missing_table(50, 0.7, kind, 9, share))
    turned = draw_presence(50, ("text", "image"), Missing("both", 0.7), 9)
    assert torch.equal(codes_of(turned), missing_table(50, 0.7, "both", 9))
    both = draw_presence(50, ("image", "text"), Missing("any", 0.3), 9)
    assert both.missing["image"] + both.missing["text"] == 30 and both.complete == 20


@pytest.mark.parametrize("text", ["audio:0.7", "audio:0.7,image:0.3", "any:0.6", "audio+text:0.5", "image:0.5,text:1"])
def test_policies_are_read_as_they_are_written(text):
    assert str(Missing.parse(text)) == text
    assert Missing.parse("either:0.7") == Missing("both", 0.7)


def test_policies_by_split():
    found = parse_missing("train=audio:0.7,image:0.3, dev=any:0.6")
    assert {split: str(one) for split, one in found.items()} == {
        "train": "audio:0.7,image:0.3", "validation": "any:0.6", "test": "none",
    }  # fmt: skip
    assert str(parse_missing("audio:0.7,image:0.3")["test"]) == "audio:0.7,image:0.3"
    for text, message in (
        ("audio:0.7,audio:0.3", "kind: got 'each', expected one of 'text', 'image', 'both'"),
        ("audio:0.7,both:0.3", "kind: got 'both', expected one of"),
        ("audio:0.7,image:0.3:0.5", "missing: got 'audio:0.7,image:0.3:0.5', expected KIND:RATE"),
        ("image+smell:0.7", "kind: got 'smell', expected one of 'text', 'image', 'both', 'audio', 'any', or several"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_missing(text)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("image:0.7,text:0.7,audio:0.7", r"missing: got image:0.7,text:0.7,audio:0.7 of 10 rows of image, text, audio, "
         "which takes 21 inputs, expected at most 20"),
        ("any:0.7", "takes 21 inputs, expected at most 20: every row keeps one, so .* 'any' is at most 0.6667"),
        ("image+text+audio:0.1", "takes 3 inputs"),
        ("both:0.7:0.25", "both_ratio: got 0.25 with image, text, audio, expected it with image and text alone"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_says_why(missing, message):
    with pytest.raises(ValueError, match=message):
        draw_table(Told([[1, 1, 1]] * 10), Missing.parse(missing), 0)


def test_a_modality_that_the_data_has_not_is_named():
    with pytest.raises(ValueError, match="kind: got 'audio', expected one of 'text', 'image', 'both', 'any', or"):
        draw_table(Told([[1, 1]] * 4, ("image", "text")), Missing.parse("audio:0.5"), 0)


@pytest.mark.parametrize("missing", ["audio:0.7,image:0.3", "any:0.6", "both:0.7", "none"])
def test_files_of_many_modalities_tell_everything(tmp_path, missing):
    data = Told([[1, 1, 1]] * 20)
    table = draw_table(data, Missing.parse(missing), seed=7)
    again = load_table(save_table(table, tmp_path), data)
    assert torch.equal(again.values, table.values) and torch.equal(again.presence.mask, table.presence.mask)
    assert vars(again) | {"values": None} == vars(table) | {"values": None}
    assert table.counts["complete"] == table.presence.complete
    two = Told([[1, 1]] * 20, ("image", "text"))
    own = save_table(draw_table(two, Missing.parse("any:0.3"), 7), tmp_path)
    assert own.name == "told_train_missing_any_0.3_seed7.safetensors"
    counts = load_table(own, two).counts
    assert counts["complete"] == 8 and counts["text missing"] + counts["image missing"] == 12
    with pytest.raises(ValueError, match="got a missing table made for data|got a missing table of audio, expected"):
        load_table(save_table(table, tmp_path / "b"), two)


def test_natural_absence_stays_and_no_row_loses_all():
    data = Told([[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 0]])
    table = draw_table(Told([[1, 1, 1]] * 4), Missing("audio+text", 1.0), 0)
    found = presence_of(table, data)
    assert found.mask.tolist() == [
        [True, False, False],
        [False, True, True],
        [False, False, True],
        [True, False, False],
    ]
    with pytest.raises(ValueError, match="told, train: got rows 2, 3 without image, text and audio, expected one"):
        presence_of(table, Told([[1, 1, 1], [0, 0, 0], [0, 0, 0], [1, 1, 0]]))
    with pytest.raises(ValueError, match="modalities: got image, text, audio, expected image and text: the code"):
        data.available()
