"""What a run does and leaves behind, what it refuses, and what it says."""

import io
import json
import math

import pytest
import rich.console
import torch
from torch.nn import functional as F

import mora
from mora.training import load_run
from mora.training.finite import NotFiniteError
from mora.training.objective.classification import row_losses
from mora.training.optimization import make_schedule
from tests.training import fakes


def events(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def test_it_learns_and_leaves_a_whole_folder(tmp_path):
    console = fakes.Silent()
    result = fakes.trainer(tmp_path / "run", fakes.splits(60), console=console, epochs=8, lr=5e-3, missing="none").fit()
    first, last = events(tmp_path / "run", "epoch")[0], events(tmp_path / "run", "epoch")[-1]
    assert last["loss"] < 0.7 * first["loss"]
    assert result.validation["accuracy"] > 0.6
    assert result.test == events(tmp_path / "run", "test")[0]["test"]
    best = max(events(tmp_path / "run", "epoch"), key=lambda e: (e["validation"]["accuracy"], -e["epoch"]))
    assert (result.best_epoch, result.validation) == (best["epoch"], best["validation"])
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json", "start.safetensors", "best", "checkpoints", "metrics.jsonl", "train.log", "result.json"
    }  # fmt: skip
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2
    assert any("8 epochs of 8 steps of 8 rows" in line for line in console.lines)
    told = [line for line in (tmp_path / "run" / "train.log").read_text().splitlines() if "diagnosis: " not in line]
    assert sum(line.count("epoch ") for line in told) == 9
    assert any(line.startswith("diagnosis: adapters") for line in console.lines)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["classes"] == list(fakes.CLASSES) and config["train"]["epochs"] == 8


def test_the_loaded_run_gives_the_logits_of_the_best_epoch(tmp_path):
    trainer = fakes.trainer(tmp_path / "run", epochs=3)
    result = trainer.fit()
    run = load_run(tmp_path / "run", backbone=fakes.backbone())
    rows = trainer.splits["test"].inputs
    batch = {name: torch.stack([rows[i][name] for i in range(len(rows))]) for name in rows[0]}
    with torch.no_grad():
        logits = run.model(batch["image"], batch["text"], batch["image_present"], batch["text_present"])
    assert float((logits.argmax(-1) == batch["label"]).float().mean()) == pytest.approx(result.test["accuracy"])
    assert run.config["tables"]["train"]["missing"] == "both:0.5"


def test_the_schedule_is_the_published_one(tmp_path):
    fakes.trainer(tmp_path / "run", fakes.splits(80), epochs=4, lr=2e-3).fit()  # 40 steps, 4 of warm-up
    rates = [event["lr"] for event in events(tmp_path / "run", "step")]
    expected = [
        2e-3 * (step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 36))) for step in range(40)
    ]
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (7, 0.0), (7, 1.0), (13, 0.3), (40, 0.1)])
def test_the_schedule_is_that_of_transformers(steps, warmup):
    from transformers import get_cosine_schedule_with_warmup

    def optimizer():
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)

    ours = make_schedule(optimizer(), steps, warmup)
    theirs = get_cosine_schedule_with_warmup(optimizer(), int(steps * warmup), steps)
    for _ in range(steps + 2):
        assert ours.get_last_lr() == theirs.get_last_lr()
        ours.optimizer.step(), theirs.optimizer.step(), ours.step(), theirs.step()
    assert ours.state_dict() == theirs.state_dict(), "what checkpoints hold"


def test_the_head_may_have_a_rate_of_its_own(tmp_path):
    trainer = fakes.trainer(tmp_path / "run", head_lr=1e-4)
    groups = trainer.engine.optimizer.param_groups
    assert [group["initial_lr"] for group in groups] == [1e-2, 1e-4]
    assert len(groups[1]["params"]) == 2
    published = fakes.trainer(tmp_path / "other", head_lr=None)
    assert len(published.engine.optimizer.param_groups) == 1


def test_bce_is_the_mean_over_rows_and_classes():
    logits, labels = torch.randn(5, 4), torch.randint(0, 2, (5, 4)).float()
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(row_losses(logits, labels, True).mean(), expected)
    target = torch.tensor([0, 1, 2, 3, 0])
    torch.testing.assert_close(row_losses(logits, target, False).mean(), F.cross_entropy(logits, target))


def test_bf16(tmp_path):
    trainer = fakes.trainer(tmp_path / "run", precision="bf16", epochs=3, missing="none")
    trainer.fit()
    losses = [event["loss"] for event in events(tmp_path / "run", "epoch")]
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in trainer.engine.trained.values())


def test_frozen_weights_stay(tmp_path):
    trainer = fakes.trainer(tmp_path / "run")
    before = {n: p.detach().clone() for n, p in trainer.model.model.named_parameters() if not p.requires_grad}
    trainer.fit()
    mora.unpatch(trainer.model.model)
    after = dict(trainer.model.model.named_parameters())
    assert before and all(torch.equal(after[n], tensor) for n, tensor in before.items() if n in after)


def test_nan_in_a_parameter_is_named(tmp_path):
    trainer = fakes.trainer(tmp_path / "run")
    with torch.no_grad():
        trainer.engine.trained["image.3.q.specific_a"][0, 0] = math.nan
    with pytest.raises(NotFiniteError, match=r"step 1 \(epoch 1\): the loss is nan, parameter image.3.q.specific_a"):
        trainer.fit()


@pytest.mark.parametrize(("cache", "name"), [("off", "image"), ("memory", "image_rows")])
def test_nan_in_an_image_names_the_rows(tmp_path, cache, name):
    data = fakes.splits()
    data["train"].images[7, 0, 0, 0] = math.inf
    with pytest.raises(NotFiniteError, match=rf"input {name} \(\d+ of \d+ elements\) is not finite, rows train row 7"):
        fakes.trainer(tmp_path / "run", data, missing="none", cache=cache).fit()


def test_infinity_in_a_gradient_stops_before_the_step(tmp_path):
    trainer = fakes.trainer(tmp_path / "run")
    trainer.engine.trained["head.bias"].register_hook(lambda gradient: gradient * math.inf)
    before = {name: p.detach().clone() for name, p in trainer.engine.trained.items()}
    with pytest.raises(NotFiniteError, match="gradient of head.bias"):
        trainer.fit()
    assert all(torch.equal(p, before[name]) for name, p in trainer.engine.trained.items())


def test_a_terminal_sees_a_bar_with_throughput_and_time_left(tmp_path):
    stream = io.StringIO()
    console = rich.console.Console(file=stream, force_terminal=True, width=140)
    fakes.trainer(tmp_path / "run", console=console).fit()
    shown = stream.getvalue()
    assert "samples/s" in shown and "left" in shown and "epoch 2/2" in shown and "10/10" in shown


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fakes.trainer(tmp_path / "run", tracker="tensorboard").fit()
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    assert {"train/loss", "train/lr", "validation/accuracy"} <= set(read.Tags()["scalars"])
    assert len(read.Scalars("train/loss")) == 10


def test_unknown_tracker(tmp_path):
    with pytest.raises(ValueError, match="tracker"):
        fakes.trainer(tmp_path / "run", tracker="notebook").fit()


def test_fp16_needs_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="precision: got 'fp16' on a CPU, expected 'bf16' or 'fp32'"):
        fakes.trainer(tmp_path / "run", precision="fp16")


def test_workers_change_nothing(tmp_path):
    for workers in (0, 2):
        fakes.trainer(tmp_path / str(workers), workers=workers, epochs=1).fit()
    one, two = (events(tmp_path / name, "step") for name in ("0", "2"))
    assert one == two


def test_every_row_without_the_same_modality_is_said(tmp_path):
    console = fakes.Silent()
    fakes.trainer(tmp_path / "run", missing="image:1.0", console=console, epochs=1).fit()
    assert any("every training row lacks its image" in line for line in console.lines)


def test_damaged_inputs_train(tmp_path):
    from PIL import Image

    data = fakes.splits()
    for split in data.values():
        pixels = (split.images.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
        split.images = [Image.fromarray(image) for image in pixels]
    trainer = fakes.trainer(tmp_path / "run", data, patches=0.3, word_drop=0.3, epochs=1)
    one, two = trainer.splits["train"].dataset[0], trainer.splits["train"].dataset[0]
    assert one.image.tobytes() == two.image.tobytes() != data["train"].images[0].tobytes()
    assert one.text == two.text


def test_limit_spreads_over_the_split(tmp_path):
    trainer = fakes.trainer(tmp_path / "run", fakes.splits(40), limit=10)
    split = trainer.splits["train"]
    assert [split.dataset[i].id for i in range(3)] == ["train row 0", "train row 4", "train row 8"]
    assert len(split.present) == 10 == len(split.dataset.labels())
    trainer.fit()


def scale_gradients(trainer, scale):
    """Give a trainer on the CPU the gradient scaler that accelerate makes for fp16 on a GPU."""
    from accelerate.optimizer import AcceleratedOptimizer

    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)
    trainer.accelerator.scaler = scaler
    trainer.engine.optimizer = AcceleratedOptimizer(trainer.engine.optimizer.optimizer, scaler=scaler)
    trainer.accelerator._optimizers = [trainer.engine.optimizer]
    return trainer


def test_overflowed_steps_are_left_out_and_counted_and_the_scale_is_resumed(tmp_path):
    def make(folder):
        trainer = fakes.trainer(folder, epochs=3, checkpoint_minutes=1e-4)
        overflows = (0, 1, 7)
        trainer.engine.trained["head.bias"].register_hook(
            lambda gradient: gradient * (math.inf if trainer.progress.step in overflows else 1.0)
        )
        return scale_gradients(trainer, 2.0**16)

    result = make(tmp_path / "whole").fit()
    assert result.skipped == 3
    norms = [event["grad_norm"] for event in events(tmp_path / "whole", "step")]
    assert [step for step, norm in enumerate(norms) if norm is None] == [0, 1, 7] and norms[-1] < 100
    broken = make(tmp_path / "broken")
    take = broken.engine.step

    def stopping(*given):
        if broken.progress.step == 9:
            raise KeyboardInterrupt
        return take(*given)

    broken.engine.step = stopping
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    again = make(tmp_path / "broken")
    assert again.fit(resume=True).skipped == 3
    assert events(tmp_path / "broken", "step") == events(tmp_path / "whole", "step")
    assert again.accelerator.scaler.get_scale() != 2.0**16


def test_a_scaler_that_always_overflows_stops(tmp_path):
    trainer = scale_gradients(fakes.trainer(tmp_path / "run", epochs=10), 2.0**16)
    trainer.engine.trained["head.bias"].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NotFiniteError, match="step 25 .*gradient of head.bias"):
        trainer.fit()


def test_frozen_batch_norms_keep_their_statistics(tmp_path):
    model = fakes.open_clip_model()
    norm = torch.nn.BatchNorm2d(64)
    model.visual.conv1 = torch.nn.Sequential(model.visual.conv1, norm)
    trainer = fakes.trainer(tmp_path / "run", model=model.eval(), method="linear")
    trainer.fit()
    assert int(norm.num_batches_tracked) == 0


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_metric_that_is_not_defined_is_said_before_the_first_step(tmp_path, split):
    data = fakes.splits()
    for part in data.values():
        part.classes, part.metric, part.all_labels = ("no", "yes"), "auroc", part.all_labels % 2
    fakes.trainer(tmp_path / "run", data)
    data[split].all_labels = torch.ones_like(data[split].all_labels)
    with pytest.raises(ValueError, match=rf"rows, {split}: every row is of one class \(yes\), expected both"):
        fakes.trainer(tmp_path / "run", data)


class Unreadable(fakes.Rows):
    def __getitem__(self, index):
        if index == 7:
            raise ValueError("row 7: the image cannot be read")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line_from_a_worker_too(tmp_path, workers):
    data = fakes.splits()
    data["validation"] = Unreadable(data["validation"].images, data["validation"].all_labels, "validation")
    with pytest.raises(ValueError, match=r"^row 7: the image cannot be read$"):
        fakes.trainer(tmp_path / "run", data, workers=workers).fit()


def test_an_interruption_says_how_to_go_on(tmp_path):
    console = fakes.Silent()
    trainer = fakes.trainer(tmp_path / "run", console=console)

    def interrupted(*given):
        raise KeyboardInterrupt

    trainer.engine.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert "--resume" in console.lines[-1]
    assert fakes.trainer(tmp_path / "run").fit(resume=True).epochs == 2
