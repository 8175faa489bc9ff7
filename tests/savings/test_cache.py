"""Stored rows: never stale, never half-written, shared, capped, and no sample is read twice."""

import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import mora
from mora.data.views import Subset
from mora.evaluation.embeddings import embed
from mora.runs.run import load_run
from mora.savings import room
from mora.savings.determinism import why_random
from mora.savings.encoder import Encoder, refusal
from mora.savings.fingerprint import preprocess_state, sample_parts, tokenizer_state
from mora.towers import towers_of
from mora.training.batches import Inputs
from tests.evaluation import fakes as squares
from tests.mora.models import MODELS
from tests.processes import FRESH, begin
from tests.savings.worlds import FAMILIES, Samples, classifier
from tests.training import fakes

PARTS = {"data": "twelve samples"}
ALL = torch.arange(12)


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("ahead", [True, False], ids=["ahead", "lazily"])
def test_every_sample_is_read_once(tmp_path, where, ahead):
    samples, model = Samples(), classifier("open_clip")
    place = {} if where == "memory" else {"folder": tmp_path, "parts": PARTS}
    cache = mora.PrefixCache(model, samples, **place)
    if ahead:
        told = []
        cache.fill(batch=5, progress=told.append)
        assert sum(told) == 12 and samples.reads == 12
    for _ in range(3):
        for index in torch.randperm(12).split(4):
            cache.image(index), cache.text(index)
    assert samples.reads == 12
    assert not bool(cache.missing(ALL).any())


def test_absent_rows_share_the_substitutes(tmp_path):
    samples, model = Samples(), classifier("open_clip")
    cache = mora.PrefixCache(model, samples, samples.image_present, samples.text_present)
    cache.fill(batch=4)
    image = cache.image(ALL)
    expected = model.prefix("image", model.missing_image[None]).rows[0]
    for row in (~samples.image_present).nonzero().flatten().tolist():
        assert torch.equal(image.rows[row], expected)
    assert int(cache.stores["image"].complete(torch.arange(13)).sum()) == int(samples.image_present.sum()) + 1


def test_several_samples_of_one_image_share_its_row():
    samples, model = Samples(), classifier("open_clip")
    rows = torch.arange(12) // 3
    cache = mora.PrefixCache(model, samples, image_rows=rows)
    cache.fill(batch=5)
    assert cache.wanted("image") == 4 and cache.stores["image"].layout.rows == 5
    whole = mora.PrefixCache(model, samples)
    torch.testing.assert_close(cache.image(ALL).rows, whole.image(rows * 3).rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_safetensors_and_the_next_run_reads_them(tmp_path, family):
    samples = Samples()
    first = mora.PrefixCache(classifier(family), samples, folder=tmp_path, parts=PARTS)
    first.fill(batch=4)
    again = Samples()
    second = mora.PrefixCache(classifier(family), again, folder=tmp_path, parts=PARTS)
    second.fill()
    assert again.reads == 0
    for modality in ("image", "text"):
        one, other = first.take(modality, ALL), second.take(modality, ALL)
        assert torch.equal(one.rows, other.rows)
        with safe_open(next(tmp_path.glob(f"*/{modality}.safetensors")), "pt") as file:
            assert torch.equal(file.get_tensor("rows")[:12, : one.rows.shape[1]], one.rows)


# What stored rows depend on: each change makes another entry, which is empty.
def other_weight(model):
    with torch.no_grad():
        model.model.visual.transformer.resblocks[1].mlp.c_fc.weight[0, 0] += 1e-3


def other_embedding(model):
    with torch.no_grad():
        model.model.token_embedding.weight[5, 0] += 1e-3


def other_activation(model):
    model.model.visual.transformer.resblocks[0].mlp.gelu = torch.nn.GELU()


CHANGES = {
    "weight": (other_weight, {}, PARTS),
    "embedding": (other_embedding, {}, PARTS),
    "activation": (other_activation, {}, PARTS),
    "layer": (None, {"last_layers": 1}, PARTS),
    "data": (None, {}, {"data": "thirteen samples"}),
    "trimmed": (None, {"savings": mora.Savings.parse("pooled")}, PARTS),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stale_is_read(tmp_path, change):
    mora.PrefixCache(classifier("open_clip"), Samples(), folder=tmp_path, parts=PARTS).fill()
    apply, options, parts = CHANGES[change]
    model = classifier("open_clip", **options)
    if apply is not None:
        apply(model)
    samples = Samples()
    mora.PrefixCache(model, samples, folder=tmp_path, parts=parts).fill()
    assert samples.reads == 12
    assert len(entries(tmp_path)) == 2


def test_what_stands_above_does_not_matter(tmp_path):
    """Another method, rank or trained adapter, on the same frozen blocks: the rows serve again."""
    mora.PrefixCache(classifier("open_clip"), Samples(), folder=tmp_path, parts=PARTS).fill()
    samples = Samples()
    model = classifier("open_clip", rank=2, targets=("k",), seed=9)
    with torch.no_grad():
        model.model.visual.transformer.resblocks[3].mlp.c_fc.weight[0, 0] += 1.0
    mora.PrefixCache(model, samples, folder=tmp_path, parts=PARTS).fill()
    assert samples.reads == 0 and len(entries(tmp_path)) == 1


def test_samples_are_told_apart():
    """One text, one pixel, the preprocessing, the tokenizer, the order: each is another name."""
    from mora.data import Corrupted, Corruption

    data = fakes.rows(6)
    known = sample_parts(data, fakes.preprocess, fakes.tokenizer)
    assert sample_parts(fakes.rows(6), fakes.preprocess, fakes.tokenizer) == known
    assert preprocess_state(lambda image: fakes.preprocess(image) * 1.001) != preprocess_state(fakes.preprocess)
    assert tokenizer_state(lambda texts: fakes.tokenizer(texts).flip(1)) != tokenizer_state(fakes.tokenizer)
    for other in (Subset(data, torch.arange(5)), Corrupted(data, Corruption(patches=0.1)), fakes.rows(7)):
        assert other.stamp() != data.stamp()


def test_a_touched_file_counts_as_changed(tmp_path):
    from PIL import Image

    from mora.data.open import open_dataset

    for row in range(4):
        Image.new("RGB", (8, 8), (40 * row, 0, 0)).save(tmp_path / f"{row}.png")
    lines = "".join(f"{row}.png,text {row},{'ab'[row % 2]},train\n" for row in range(4))
    (tmp_path / "rows.csv").write_text("image,text,label,split\n" + lines)
    before = open_dataset(tmp_path / "rows.csv", "train").stamp()
    assert open_dataset(tmp_path / "rows.csv", "train").stamp() == before
    os.utime(tmp_path / "2.png", ns=(1, 1))
    assert open_dataset(tmp_path / "rows.csv", "train").stamp() != before
    (tmp_path / "rows.csv").write_text("image,text,label,split\n" + lines.replace("text 1", "Text 1"))
    os.utime(tmp_path / "2.png", ns=(2, 2))
    assert open_dataset(tmp_path / "rows.csv", "train").fingerprint not in before


def test_frozen_weights_that_move_are_refused():
    samples, model = Samples(), classifier("open_clip")
    cache = mora.PrefixCache(model, samples)
    other_weight(model)
    with pytest.raises(ValueError, match="cache: a frozen weight, its place or the precision changed"):
        cache.image(ALL)


def test_frozen_weights_that_move_after_all_rows_are_there_are_refused_too():
    """What autograd counts at every take; what nobody counts when asked to look at every byte."""
    samples, model = Samples(), classifier("open_clip")
    cache = mora.PrefixCache(model, samples)
    cache.fill()
    cache.image(ALL)
    next(model.model.parameters()).data.mul_(1.5)
    cache.image(ALL)
    with pytest.raises(ValueError, match="cache: a frozen weight"):
        cache.check(contents=True)
    other_weight(model)
    with pytest.raises(ValueError, match="cache: a frozen weight"):
        cache.image(ALL)


def test_what_a_name_cannot_tell_shows_in_the_substitute(tmp_path, monkeypatch):
    mora.PrefixCache(classifier("open_clip"), Samples(), folder=tmp_path, parts=PARTS)
    model = classifier("open_clip")
    ln = model.model.visual.ln_pre
    monkeypatch.setattr(ln, "forward", lambda x: 2 * torch.nn.functional.layer_norm(x, x.shape[-1:]))
    with pytest.raises(ValueError, match="holds image rows of other frozen blocks"):
        mora.PrefixCache(model, Samples(), folder=tmp_path, parts=PARTS)


def test_a_cap_is_kept_before_anything_is_made(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"12 samples need up to .* KB in memory, expected at most 10 KB"):
        mora.PrefixCache(classifier("open_clip"), Samples(), cap=10_000)
    with pytest.raises(ValueError, match="expected at most 10 KB"):
        mora.PrefixCache(classifier("open_clip"), Samples(), folder=tmp_path, parts=PARTS, cap=10_000)
    assert entries(tmp_path) == []
    monkeypatch.setattr("mora.savings.cache.free_memory", lambda: 40_000)
    with pytest.raises(ValueError, match="expected at most 20 KB"):
        mora.PrefixCache(classifier("open_clip"), Samples())
    assert room.free_memory() > 0
    assert room.free_disk(tmp_path / "not" / "there") > 0
    text = str(mora.PrefixCache(classifier("open_clip"), Samples(), cap=10**9))
    assert "12 image rows of 17x64 float32" in text and "cap 1.0 GB" in text


def test_damaged_files_are_named(tmp_path):
    def fresh():
        return mora.PrefixCache(classifier("open_clip"), Samples(), folder=tmp_path, parts=PARTS)

    cache = fresh()
    cache.fill()
    path = next(tmp_path.glob("*/image.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(
        ValueError, match=r"image.safetensors: got \d+ bytes, expected \d+: the file is damaged; delete"
    ):
        fresh()
    flipped = bytearray(whole)
    flipped[len(cache.stores["image"].layout.header()) + 3 * cache.stores["image"].layout.row_bytes + 9] ^= 1
    path.write_bytes(flipped)
    again = fresh()
    again.image(torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="got a row 3 that fails its CRC-32"):
        again.image(ALL)
    path.write_bytes(b"PK" + whole[2:])
    with pytest.raises(ValueError, match="got another header"):
        fresh()
    path.write_bytes(whole)
    (path.parent / "about.json").write_text(json.dumps({"parts": {}}))
    with pytest.raises(ValueError, match="about.json: got another description"):
        fresh()


class Slow(Samples):
    def __getitem__(self, index):
        time.sleep(0.02)
        with open(self.log, "a") as file:
            file.write(f"{index}\n")
        return super().__getitem__(index)


def work(folder, log):
    torch.set_num_threads(1)
    samples = Slow(60)
    samples.log = log
    mora.PrefixCache(classifier("open_clip"), samples, folder=folder, parts=PARTS).fill(batch=3)


@pytest.fixture(scope="module")
def processes():
    begin()
    return FRESH


def reads(log):
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def expected_rows():
    samples = Samples(60)
    cache = mora.PrefixCache(classifier("open_clip"), samples)
    cache.fill(batch=3)
    return cache


def test_two_processes_fill_together(processes, tmp_path):
    logs = [tmp_path / "one", tmp_path / "two"]
    both = [processes.Process(target=work, args=(tmp_path / "cache", log)) for log in logs]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    one, two = map(reads, logs)
    assert sorted(one + two) == list(range(60))
    assert one and two
    read = mora.PrefixCache(classifier("open_clip"), Samples(60), folder=tmp_path / "cache", parts=PARTS)
    for modality in ("image", "text"):
        index = torch.arange(60)
        torch.testing.assert_close(read.take(modality, index).rows, expected_rows().take(modality, index).rows)


def test_killed_while_filling(processes, tmp_path):
    """kill -9 at several moments: every row that counts is right, and the next process goes on with the others."""
    log = tmp_path / "log"
    for kill in range(3):
        process = processes.Process(target=work, args=(tmp_path / "cache", log))
        before = len(reads(log))
        process.start()
        while process.is_alive() and len(reads(log)) < before + 7 + kill:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    samples = Samples(60)
    cache = mora.PrefixCache(classifier("open_clip"), samples, folder=tmp_path / "cache", parts=PARTS)
    index = torch.arange(60)
    there = index[~cache.missing(index)]
    assert 3 <= len(there) < 60
    expected = expected_rows()
    for modality in ("image", "text"):
        torch.testing.assert_close(cache.take(modality, there).rows, expected.take(modality, there).rows)
    assert samples.reads == 0
    cache.fill(batch=3)
    assert samples.reads == 60 - len(there)
    assert [name for name in entries(tmp_path / "cache") if not name.startswith(".")] == entries(tmp_path / "cache")


class Jitter:
    def __call__(self, image):
        return torch.rand(3)


def test_augmented_images_are_refused():
    from torchvision import transforms

    plain = transforms.Compose([transforms.Resize(8), transforms.CenterCrop(8), transforms.ToTensor()])
    assert why_random(plain) == ""
    crop = transforms.Compose([transforms.Compose([transforms.RandomResizedCrop(8)]), transforms.ToTensor()])
    assert why_random(crop) == "images are augmented at random (RandomResizedCrop)"
    rare = transforms.Compose([transforms.RandomApply([transforms.ColorJitter(0.1)], p=1e-6), transforms.ToTensor()])
    assert "RandomApply, ColorJitter" in why_random(rare)
    before = torch.get_rng_state()
    assert why_random(Jitter()) == "images are preprocessed differently from call to call"
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="cache: images are augmented at random"):
        sample_parts(fakes.rows(3), crop, fakes.tokenizer)


def test_open_clips_own_augmentation_is_refused():
    import open_clip

    config = open_clip.AugmentationCfg(scale=(0.5, 1.0))
    assert "RandomResizedCrop" in why_random(open_clip.image_transform(32, is_train=True, aug_cfg=config))
    assert why_random(open_clip.image_transform(32, is_train=False)) == ""


def test_a_prefix_that_is_not_frozen_is_refused():
    model = classifier("open_clip")
    model.model.visual.conv1.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="cache: image: what stands below the blocks is trained"):
        mora.PrefixCache(model, Samples())
    model = classifier("hugging_face")
    model.model.vision_model.encoder.layers[0].self_attn.dropout = 0.5
    assert "image: what runs below block 2 draws at random in training" in refusal(model)
    assert refusal(classifier("open_clip", last_layers=4)).startswith("image: the first block is adapted")
    with pytest.raises(ValueError, match="parts: got none with a folder"):
        mora.PrefixCache(classifier("open_clip"), Samples(), folder="somewhere")


def test_an_encoder_of_any_towers_without_a_head(monkeypatch):
    """By the names that its model has for them, one of them alone as well: none is an image or a text to the cache."""
    samples, model = Samples(), classifier("open_clip")
    present = {"image": samples.image_present, "text": samples.text_present}
    one = mora.PrefixCache(model, samples, *present.values(), image_rows=ALL // 3)
    cache = mora.PrefixCache(Encoder(model.model), samples, present=present, rows={"image": ALL // 3})
    for modality in present:
        assert torch.equal(cache.take(modality, ALL).rows, one.take(modality, ALL).rows)
    with pytest.raises(ValueError, match="present: got audio, expected some of image, text"):
        mora.PrefixCache(model, samples, present={"audio": samples.image_present})

    clip = MODELS["open_clip"]().requires_grad_(False)
    image = towers_of(clip)["image"]
    monkeypatch.setattr("mora.savings.encoder.towers_in", lambda _: {"radar": replace(image, modality="radar")})
    encoder = Encoder(clip)
    cache = mora.PrefixCache(encoder, [{"radar": scan} for scan in samples.image])
    hidden = encoder.embed_rows("radar", cache.take("radar", ALL))
    torch.testing.assert_close(hidden, clip.encode_image(samples.image), rtol=1e-5, atol=1e-5)


def test_an_evaluation_reads_rows_past_the_frozen_blocks_instead_of_samples(tmp_path):
    run = load_run(squares.write_run(tmp_path / "run"))
    data = squares.InMemory(12, natural=[0, 1, 2] * 4, groups=torch.arange(12) // 2)
    inputs = Inputs(data, data.present(), run.preparing)
    present = data.available() != 2, data.available() != 1
    cache = mora.PrefixCache(run.model, inputs, *present, image_rows=data.groups())
    cache.fill()
    data.reads.clear()
    kept = embed(run, data, batch=5, cache=cache)
    assert not data.reads
    read = embed(run, data, batch=5)
    assert len(data.reads) == 12
    for one, other in ((kept.image, read.image), (kept.text, read.text)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
