"""The derived split: whole contents, every class in train, independent of the order of rows."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mora.data.sources.division import divide

rows = st.lists(
    st.tuples(st.integers(0, 40).map(str), st.sets(st.sampled_from("abcde"), min_size=1).map(sorted).map(tuple)),
    min_size=1,
    max_size=80,
)


@given(rows, st.integers(0, 5), st.randoms())
@settings(max_examples=80, deadline=None)
def test_contents_stay_whole_labels_are_trained_and_order_does_not_matter(found, seed, random) -> None:
    parts = divide([row[0] for row in found], [row[1] for row in found], seed)
    by_content: dict[str, set[str]] = {}
    for (content, _), part in zip(found, parts, strict=True):
        by_content.setdefault(content, set()).add(part)
    assert all(len(several) == 1 for several in by_content.values())
    trained = {label for row, part in zip(found, parts, strict=True) if part == "train" for label in row[1]}
    assert trained == {label for row in found for label in row[1]}
    shuffled = random.sample(found, len(found))
    again = divide([row[0] for row in shuffled], [row[1] for row in shuffled], seed)
    assert sorted(zip(shuffled, again, strict=True)) == sorted(zip(found, parts, strict=True))


def test_shares_of_every_class() -> None:
    contents, labels = [str(i) for i in range(1000)], [("ab"[i % 10 == 0],) for i in range(1000)]
    counts = Counter(zip((label for (label,) in labels), divide(contents, labels, 0), strict=True))
    assert counts == {
        ("a", "train"): 720, ("a", "validation"): 90, ("a", "test"): 90,
        ("b", "train"): 80, ("b", "validation"): 10, ("b", "test"): 10,
    }  # fmt: skip


def test_small_classes() -> None:
    for count, expected in ((1, {"train"}), (2, {"train", "test"}), (3, {"train", "validation", "test"})):
        assert set(divide([str(i) for i in range(count)], [("a",)] * count, 0)) == expected
