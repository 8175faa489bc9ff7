"""Training on pairs: no labels, no head; what is trained are the adapters, chosen by recall at 1 both ways."""

import json
import os

import pytest
import torch

from mora.contrast.ranks import retrieval
from mora.data import open_dataset
from mora.system.files import read_tensors
from mora.training import TrainConfig, load_run
from mora.training.batches import epoch_order, shares
from mora.training.objective.contrastive import Contrastive, presence_of
from tests.processes import Running, free_port
from tests.training import fakes
from tests.training.test_distributed import close, losses

FIELDS = dict(objective="contrastive", lr=3e-2)


def pairs(out, datasets=None, **fields):
    return fakes.trainer(out, datasets, **{**FIELDS, **fields})


def test_a_run_from_beginning_to_end(tmp_path):
    """The kept epoch comes back with its figures: those of the embeddings of a plain forward pass, counted anew."""
    console = fakes.Silent()
    trainer = pairs(tmp_path / "run", console=console, epochs=4, batch=20, missing="train=none")
    frozen = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    result = trainer.fit()
    assert all(torch.equal(p, frozen[name]) for name, p in trainer.model.named_parameters() if name in frozen)
    assert [*trainer.engine.trained] == [*fakes.adapters(trainer.model.clip)]
    first, *_, last = losses(tmp_path / "run")
    assert last < 0.95 * first and result.patterns["validation"] == {}
    assert any("validation recall_at_1" in line for line in console.lines)
    run = load_run(tmp_path / "run", backbone=fakes.backbone())
    assert (run.metric, run.config["objective"], run.model.head_kind) == ("recall_at_1", "contrastive", "none")
    split = trainer.splits["test"]
    batch = [split.inputs[row] for row in range(len(split.inputs))]
    image, text = (torch.stack([row[name] for row in batch]) for name in ("image", "text"))
    with torch.no_grad():
        embedded = {"image": run.model.clip.encode_image(image), "text": run.model.clip.encode_text(text)}
    found = retrieval(embedded, presence_of(split))
    assert sum(one.recall[5] for one in found) / 2 == pytest.approx(result.test["recall_at_5"])
    assert found[0].median_rank == result.test["image_to_text_median_rank"]
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(line["validation"]["recall_at_1"] for line in epochs if line["event"] == "epoch")
    assert result.validation["recall_at_1"] == best


def test_resumed_it_ends_in_the_same_bits(tmp_path):
    pairs(tmp_path / "whole", fakes.splits(20)).fit()
    first = pairs(tmp_path / "parts", fakes.splits(20), checkpoint_minutes=1e-4)
    take = first.engine.step

    def stopping(*given):
        if first.progress.step == 3:
            raise KeyboardInterrupt
        return take(*given)

    first.engine.step = stopping
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    pairs(tmp_path / "parts", fakes.splits(20)).fit(resume=True)
    for name in ("adapter_model.safetensors", "head.safetensors"):
        one, other = (read_tensors(tmp_path / folder / "best" / name)[0] for folder in ("whole", "parts"))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    with pytest.raises(ValueError, match="data.metric: .*started with 'recall_at_1', this call has 'accuracy'"):
        fakes.trainer(tmp_path / "parts", fakes.splits(20), lr=3e-2).fit(resume=True)


def test_a_step_is_the_mean_over_the_pairs_of_its_forward_passes(tmp_path):
    """Rows of other forward passes are no negatives: the loss of a step is that of each of them, by pairs."""
    fields = dict(dropout=0.0, epochs=1, lr=1e-6, batch=8)
    pairs(tmp_path / "one", fakes.splits(32, natural=True), **fields).fit()
    trainer = pairs(tmp_path / "two", fakes.splits(32, natural=True), accumulation=4, **fields)
    trainer.fit()
    each, objective = losses(tmp_path / "one"), trainer.engine.objective
    counts = torch.tensor([objective.count(share) for share in shares(epoch_order(32, 42, 1), 8, 1, 0)])
    assert (counts != counts[0]).any()
    torch.testing.assert_close(
        losses(tmp_path / "two"), (each * counts).sum()[None] / counts.sum(), rtol=1e-4, atol=1e-5
    )


def train(rank, port, out):
    """What torchrun would tell a process, and the training."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    pairs(out, fakes.splits(17, natural=True), batch=4, dropout=0.0, lr=1e-3, cache="off").fit()


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    """Rows of the other process are negatives, too; the last forward pass leaves it without any of its own."""
    pairs(tmp_path / "one", fakes.splits(17, natural=True), batch=8, dropout=0.0, lr=1e-3).fit()
    port = free_port()
    running = [Running(train, rank, port, tmp_path / "two") for rank in range(2)]
    for each in running:
        ended = each.end()
        assert ended.code == 0, ended.err[-3000:]
    close(tmp_path / "one", tmp_path / "two")


def test_steps_without_a_pair_change_nothing_but_are_no_nan(tmp_path):
    pairs(tmp_path / "run", fakes.splits(16), missing="train=both:0.8", batch=2, epochs=1).fit()
    found = losses(tmp_path / "run")
    assert (found == 0).any() and found.isfinite().all() and (found > 0).any()


def test_fewer_than_two_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="objective: got 'contrastive' with 0 rows of train that have image and text"):
        pairs(tmp_path / "run", missing="train=both:1.0")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(method="linear"), "method: got 'linear' with objective 'contrastive', .*nothing but a head"),
        (dict(method="mmp"), "method: got 'mmp' with objective 'contrastive', .*prompts"),
        (dict(head="prototypes"), "head, missing_embedding: got 'prototypes' with objective 'contrastive'"),
        (dict(missing_embedding="learned"), "head, missing_embedding: got 'learned'"),
        (dict(metric="accuracy"), "metric: got 'accuracy', expected"),
        (dict(objective="pairs"), "objective: got 'pairs', expected one of 'classification', 'contrastive'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.make(data="rows", out="out", **{**FIELDS, **fields})


def test_recall_is_no_metric_of_labels():
    with pytest.raises(ValueError, match="metric: got 'recall_at_1', expected"):
        TrainConfig.make(data="rows", out="out", metric="recall_at_1")


def test_a_model_with_a_bias_has_the_sigmoid_loss(tmp_path):
    model = fakes.open_clip_model()
    model.logit_bias = torch.nn.Parameter(torch.tensor(-3.0))
    trainer = pairs(tmp_path / "run", fakes.splits(16), model=model, epochs=1, missing="none")
    objective = trainer.engine.objective
    assert float(objective.bias) == -3 and float(objective.scale) == pytest.approx(
        float(model.logit_scale.detach().exp())
    )
    trainer.fit()
    assert losses(tmp_path / "run").isfinite().all() and float(model.logit_bias.detach()) == -3


def test_a_model_of_other_towers_is_refused_by_name(tmp_path):
    trainer = pairs(tmp_path / "run")
    trainer.model.towers = {"audio": None, **trainer.model.towers}
    with pytest.raises(ValueError, match="with a model of audio and image and text on data of image and text"):
        Contrastive(trainer.accelerator, trainer.splits, trainer.model)


def test_zero_shot_scores_the_untouched_model(tmp_path):
    result = pairs(tmp_path / "run", method="zero-shot").fit()
    assert (result.best_epoch, result.parameters) == (0, 0) and "recall_at_10" in result.test


def test_a_manifest_needs_no_labels(tmp_path):
    """What is trained on one stands in docs/retrieval.md, which a test runs."""
    (tmp_path / "pairs.csv").write_text("text,split\none,train\ntwo,validation\n")
    with pytest.raises(ValueError, match="expected label too"):
        open_dataset(tmp_path / "pairs.csv", "validation")
    with pytest.raises(ValueError, match="every row lacks its image"):
        open_dataset(tmp_path / "pairs.csv", "train", metric="recall_at_1")
    data = open_dataset(tmp_path / "pairs.csv", "validation", metric="recall_at_1")
    assert (data.classes, data.metric, data.labels().tolist()) == (("unlabelled",), "recall_at_1", [0])
