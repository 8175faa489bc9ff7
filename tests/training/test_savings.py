"""`mora train` with its savings: the same figures, every image decoded once, exact resume, reasons told."""

import pytest
import torch

from tests.training import fakes
from tests.training.test_distributed import losses
from tests.training.test_resume import StopError, events, same, stop_at

FIELDS = dict(epochs=3, batch=8, dropout=0.0)


class Counting(fakes.Rows):
    """Rows that count how often they are read."""

    reads = 0

    def __getitem__(self, index):
        type(self).reads += 1
        return super().__getitem__(index)


def counting(count=24):
    Counting.reads = 0
    made = {}
    for split, plain in fakes.splits(count, natural=True).items():
        made[split] = Counting(plain.images, plain.all_labels, split, natural=True)
    return made


def told(trainer):
    return "\n".join(trainer.log.console.lines)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(the folder, the trained tensors) of a run that saves nothing."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    trainer = fakes.trainer(folder, fakes.splits(natural=True), savings="none", cache="off", **FIELDS)
    trainer.fit()
    return folder, fakes.trained_tensors(trainer)


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("savings", ["none", "all"])
def test_the_same_run_without(tmp_path, plain, cache, savings):
    folder, tensors = plain
    place = {"cache_folder": str(tmp_path / "rows")} if cache == "disk" else {}
    saved = fakes.trainer(
        tmp_path / "saved", fakes.splits(natural=True), savings=savings, cache=cache, **place, **FIELDS
    )
    saved.fit()
    assert (losses(folder) - losses(tmp_path / "saved")).abs().max() <= 1e-5
    for name, tensor in tensors.items():
        torch.testing.assert_close(fakes.trained_tensors(saved)[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("method", ["mora", "lora", "linear"])
def test_every_image_is_read_once(tmp_path, method):
    data = counting()
    trainer = fakes.trainer(tmp_path / "run", data, method=method, epochs=5)
    trainer.fit()
    assert Counting.reads == sum(len(split) for split in data.values())
    assert "cache, train: up to" in told(trainer)


def test_the_next_run_decodes_nothing_it_has_seen(tmp_path):
    """On disk the rows of a data set serve any method, table and seed on the same frozen blocks."""
    place = dict(cache="disk", cache_folder=str(tmp_path / "rows"), epochs=2)
    data = counting()
    fakes.trainer(tmp_path / "one", data, missing="both:0.7", **place).fit()
    test = len(data["test"])
    assert Counting.reads == sum(len(split) for split in data.values())
    fakes.trainer(tmp_path / "two", counting(), missing="image:0.3", method="lora", seed=7, **place).fit()
    assert Counting.reads == test


def test_a_memory_cache_holds_only_what_the_table_leaves(tmp_path):
    trainer = fakes.trainer(tmp_path / "run", missing="image:0.5", epochs=2)
    trainer.fit()
    assert "20 image rows of" in told(trainer) and "40 text rows of" in told(trainer)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_resumed_with_a_cache_it_ends_in_the_same_bits(tmp_path, cache):
    fields = dict(epochs=3, batch=4, checkpoint_minutes=1e-4, accumulation=2, dropout=0.3, cache=cache)
    place = lambda name: {"cache_folder": str(tmp_path / name)} if cache == "disk" else {}  # noqa: E731
    fakes.trainer(tmp_path / "whole", **fields, **place("a")).fit()
    stop_at(fakes.trainer(tmp_path / "broken", **fields, **place("b")), 7)
    fakes.trainer(tmp_path / "broken", **fields, **place("b")).fit(resume=True)
    same(tmp_path / "whole", tmp_path / "broken")
    assert events(tmp_path / "whole") == events(tmp_path / "broken")


def test_where_they_do_not_fit_the_log_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("mora.savings.cache.free_memory", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    trainer = fakes.trainer(tmp_path / "disk", epochs=2)
    trainer.fit()
    assert f"in {tmp_path}/home/mora/prefixes" in told(trainer)
    monkeypatch.setattr("mora.savings.cache.free_disk", lambda folder: 1000)
    trainer = fakes.trainer(tmp_path / "none", epochs=2)
    trainer.fit()
    assert "cache: none: 40 samples need up to" in told(trainer)
    with pytest.raises(ValueError, match="cache: 40 samples need up to .* in memory, expected at most 500 B"):
        fakes.trainer(tmp_path / "asked", epochs=2, cache="memory").fit()
    with pytest.raises(ValueError, match="expected at most 10 KB"):
        fakes.trainer(tmp_path / "capped", epochs=2, cache="memory", cache_gb=1e-5).fit()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (dict(method="bitfit"), "cache: none: image: what stands below the blocks is trained"),
        (dict(last_layers=4), "cache: none: image: the first block is adapted or trained"),
        (dict(epochs=1), "cache: none: one epoch reads every row once"),
        (dict(cache="off"), "cache: none: off"),
    ],
)
def test_why_there_is_no_cache(tmp_path, fields, reason):
    trainer = fakes.trainer(tmp_path / "run", **fields)
    trainer.fit()
    assert reason in told(trainer)
    assert "savings (all): image: " in told(trainer)


def test_augmentation_is_refused(tmp_path):
    from mora.training import Backbone, Trainer

    def jitter(image):
        plain = fakes.preprocess(image)
        return plain + torch.randn_like(plain)

    backbone = Backbone.of(fakes.open_clip_model(), jitter, fakes.tokenizer, "fake")
    console = fakes.Silent()
    Trainer(fakes.config(tmp_path / "run"), backbone, fakes.splits(), console).fit()
    assert "cache: none: images are preprocessed differently from call to call" in "\n".join(console.lines)
    backbone = Backbone.of(fakes.open_clip_model(), jitter, fakes.tokenizer, "fake")
    asked = Trainer(fakes.config(tmp_path / "asked", cache="memory"), backbone, fakes.splits(), console)
    with pytest.raises(ValueError, match="cache: got 'memory', expected 'off' or 'auto': images are preprocessed"):
        asked.fit()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(savings="pooling"), "savings: got 'pooling', expected 'all', 'none', or some of 'pooled'"),
        (dict(cache="ram"), "cache: got 'ram', expected one of"),
        (dict(cache_dtype="int8"), "cache_dtype: got 'int8'"),
        (dict(cache_gb=0), "cache_gb: got 0, expected a number above 0"),
    ],
)
def test_wrong_options_are_named(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        fakes.config(tmp_path / "run", **fields)


def test_savings_may_not_change_on_resume(tmp_path):
    stop_at(fakes.trainer(tmp_path / "run", epochs=2), 2)
    assert StopError
    with pytest.raises(ValueError, match="savings: .*started with 'all', this call has 'none'"):
        fakes.trainer(tmp_path / "run", epochs=2, savings="none").fit(resume=True)
