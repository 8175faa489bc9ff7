"""A grid is what forward passes of the classifier give, table by table, for one pass over the towers."""

import pytest
import torch

from mora.data import Corrupted, Corruption
from mora.data.missing import missing_table
from mora.data.tables import Missing, draw_table, per_sample
from mora.evaluation.embeddings import embed
from mora.evaluation.grid import Result, cells, evaluate, grid
from mora.metrics import Metric
from mora.runs.run import load_run
from mora.towers import CutTower
from mora_kernels.testing import assert_parity
from tests.evaluation.fakes import InMemory, write_run

TABLE = {torch.float32: 2e-5}
NATURAL = [0, 1, 2, 0, 0, 2, 1, 0, 0, 0, 0, 0]
GROUPS = [0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 7]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {metric: load_run(write_run(folder / metric, metric=metric)) for metric in ("accuracy", "macro_f1", "auroc")}


def forward(run, dataset, lacks, batch=5):
    """Logits by the classifier's own forward, batch by batch."""
    parts = []
    for rows in torch.arange(len(dataset)).split(batch):
        samples = [dataset[i] for i in rows.tolist()]
        blank = torch.zeros(3, 64, 64)
        image = torch.stack([blank if s.image is None else run.preprocess(s.image) for s in samples])
        text = run.tokenize([s.text or "" for s in samples])
        with torch.no_grad():
            parts.append(run.model(image, text, lacks[rows] != 2, lacks[rows] != 1))
    return torch.cat(parts)


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize(("kind", "rate"), [("both", 0.0), ("text", 0.5), ("image", 1.0), ("both", 0.9)])
def test_logits_are_those_of_the_direct_forward(runs, kind, rate, groups):
    run, natural = runs["accuracy"], NATURAL if groups is None else None
    dataset = InMemory(natural=natural, groups=groups)
    table = missing_table(dataset.rows, rate, kind, seed=3)
    embeddings = embed(run, dataset, batch=4)
    lacks = per_sample(draw_table(dataset, Missing(kind, rate), 3), dataset)
    own = table if groups is None else table[torch.tensor(groups)]
    expected = [n or int(t) for n, t in zip(dataset.natural.tolist(), own, strict=True)]
    assert lacks.tolist() == expected
    index, logits = (torch.cat(parts) for parts in zip(*embeddings.logits(lacks), strict=True))
    assert index.tolist() == list(range(len(dataset)))
    assert_parity("logits", logits, forward(run, dataset, lacks), TABLE)


@pytest.mark.parametrize(
    ("head", "missing"), [("pattern-bias", "learned"), ("prototypes", "zero"), ("zero-shot", "substitute")]
)
def test_logits_of_heads_that_know_the_pattern_are_those_of_the_direct_forward(tmp_path, head, missing):
    run, dataset = load_run(write_run(tmp_path / "run", head=head, missing_embedding=missing)), InMemory()
    lacks = torch.tensor([0, 1, 2] * 4)
    logits = torch.cat([part for _, part in embed(run, dataset, batch=4).logits(lacks)])
    assert_parity("logits", logits, forward(run, dataset, lacks), TABLE)
    result = evaluate(run, dataset, "both:0.5", seed=1)
    right = {name: own["accuracy"] * own["rows"] for name, own in result.patterns.items()}
    assert sum(own["rows"] for own in result.patterns.values()) == 12 and next(iter(right)) == "complete"
    assert sum(right.values()) == pytest.approx(12 * result.value)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "auroc"])
def test_every_cell_is_the_metric_of_a_forward_pass(runs, metric):
    run = runs[metric]
    groups = GROUPS if metric == "macro_f1" else None
    dataset = InMemory(metric=metric, groups=groups)
    results = grid(run, dataset, types=("text", "both"), rates=(0.5,), seeds=(4, 5))
    assert [(r.kind, r.rate, r.seed) for r in results] == [
        ("none", 0.0, None), ("text", 0.5, 4), ("text", 0.5, 5), ("both", 0.5, 4), ("both", 0.5, 5),
    ]  # fmt: skip
    for result in results:
        table = torch.zeros(dataset.rows)
        if result.seed is not None:
            table = missing_table(dataset.rows, result.rate, result.kind, result.seed)
        lacks = table if groups is None else table[torch.tensor(groups)]
        expected = Metric(metric, len(run.classes), run.multi_label)
        expected.update(forward(run, dataset, lacks), dataset.labels(), dataset.groups())
        assert result.figures == pytest.approx(expected.compute())
        assert result.value == result.figures[metric]
        assert result.complete + result.text_missing + result.image_missing == result.rows == 12
        assert (result.text_missing, result.image_missing) == (int((lacks == 1).sum()), int((lacks == 2).sum()))
    assert ("macro_f1_per_movie" in results[0].figures) == (metric == "macro_f1")


def test_each_image_and_text_passes_once(runs, monkeypatch):
    run, dataset = runs["accuracy"], InMemory(groups=GROUPS)
    seen = {"image": 0, "text": 0}
    run.model.saved()  # what it tries to find that out
    suffix = CutTower.suffix

    def count(self, model, hidden, *others):
        seen[self.modality] += len(hidden)
        return suffix(self, model, hidden, *others)

    monkeypatch.setattr(CutTower, "suffix", count)
    grid(run, dataset, seeds=(0, 1))
    assert seen == {"image": 8 + 1, "text": 12 + 1}  # movies and plots, and the two substitutes
    assert sorted(dataset.reads) == list(range(12))


def test_missing_by_nature_is_never_taken_twice(runs):
    result = evaluate(runs["accuracy"], InMemory(natural=NATURAL), "text:1.0")
    assert (result.complete, result.text_missing, result.image_missing) == (0, 10, 2)
    nothing = evaluate(runs["accuracy"], InMemory(natural=NATURAL))
    assert (nothing.complete, nothing.text_missing, nothing.image_missing) == (8, 2, 2)


def test_a_table_of_your_own_is_the_same_as_its_condition(runs):
    dataset = InMemory()
    drawn = evaluate(runs["accuracy"], dataset, "both:0.7", seed=9)
    own = evaluate(runs["accuracy"], dataset, table=draw_table(dataset, Missing("both", 0.7), 9), label="mine")
    assert {**own.to_dict(), "model": "mora"} == drawn.to_dict()
    assert isinstance(drawn, Result)
    named = cells(runs["accuracy"], dataset, [], (0,), {"a/file.pt": draw_table(dataset, Missing("both", 0.7), 9)})
    assert (named[0].table, named[0].figures) == ("a/file.pt", drawn.figures)


def test_corruption_is_every_sample_s_own(runs):
    """Samples of one image are damaged apart, so each must pass."""
    run, dataset = runs["accuracy"], Corrupted(InMemory(groups=GROUPS), Corruption(patches=0.5, word_drop=0.5))
    embeddings = embed(run, dataset)
    lacks = torch.zeros(len(dataset), dtype=torch.int8)
    ((_, logits),) = embeddings.logits(lacks)
    assert_parity("logits", logits, forward(run, dataset, lacks), TABLE)
    ((_, whole),) = embed(run, dataset.dataset).logits(lacks)
    assert float((logits - whole).abs().max()) > 1e-3


def test_nothing_is_scored_once(runs):
    results = grid(runs["accuracy"], InMemory(), types=("text", "image"), rates=(0.0, 0.5), seeds=(0,))
    assert [(r.kind, r.rate) for r in results] == [("none", 0.0), ("text", 0.5), ("image", 0.5)]
    share = evaluate(runs["accuracy"], InMemory(), "both:0.5:0.25")
    assert (share.condition, share.text_missing, share.image_missing) == ("both:0.25", 5, 1)


def test_workers_change_nothing(runs):
    alone, beside = (evaluate(runs["accuracy"], InMemory(), "both:0.5", workers=workers) for workers in (0, 1))
    assert alone == beside


class Broken(InMemory):
    def __getitem__(self, index):
        if index == 5:
            raise ValueError("row-5: the image cannot be read")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(runs, workers):
    with pytest.raises(ValueError, match=r"^row-5: the image cannot be read$"):
        evaluate(runs["accuracy"], Broken(), workers=workers)


class Lying(InMemory):
    def available(self):
        return torch.zeros(len(self), dtype=torch.int8)


def renamed(**changes):
    dataset = InMemory()
    for name, value in changes.items():
        setattr(dataset, name, value)
    return dataset


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (InMemory(), {"missing": "both"}, "missing: got 'both', expected KIND:RATE"),
        (InMemory(), {"missing": "audio:0.5"}, "kind: got 'audio', expected one of 'text', 'image', 'both'"),
        (InMemory(), {"missing": "both:70"}, "rate: got 70.0, expected a share between 0 and 1"),
        (InMemory(), {"table": draw_table(InMemory(3), Missing(), 0)}, "missing table of 3 rows"),
        (InMemory(0), {}, "squares has no rows in split 'test'"),
        (InMemory(metric="macro_f1"), {}, "squares has several labels per row, expected one label per row"),
        (renamed(classes=("apple", "kiwi")), {}, "got 'kiwi', unknown to the model, expected the model's 4"),
        (renamed(classes=("pear", "apple", "plum", "fig")), {}, "got 4 in another order"),
        (Lying(natural=NATURAL), {}, "sample row-1 has no text, expected one"),
    ],
)
def test_what_does_not_fit_is_named(runs, dataset, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(runs["accuracy"], dataset, **options)


def test_seeds_are_each_once(runs):
    with pytest.raises(ValueError, match=r"seeds: got \[1, 1\], expected at least one, each once"):
        grid(runs["accuracy"], InMemory(), seeds=(1, 1))
