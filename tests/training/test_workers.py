"""Processes that read samples: started in any way, bounded, and named when one is killed."""

import io
import multiprocessing
import os
import pickle
import signal
import time
from multiprocessing.reduction import ForkingPickler

import open_clip
import pytest
import torch

from mora.cli import main
from mora.data.open import open_dataset
from mora.runs.backbone import load_backbone, with_policy
from mora.runs.preparing import Preparing
from mora.system import workers
from mora.training.batches import Inputs
from mora.training.caching import CachedInputs
from tests.data import synthetic
from tests.processes import Running, begin
from tests.savings import worlds
from tests.training import fakes


@pytest.fixture
def start_method():
    """Sets how processes start from here on."""
    before = multiprocessing.get_start_method()
    begin()
    yield lambda method: multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_start_method(before, force=True)


# As on macOS and Windows, and on Linux from Python 3.14 on.
@pytest.mark.parametrize("method", os.environ.get("MORA_START_METHODS", "forkserver").split(","))
def test_workers_that_are_not_forked(tmp_path, capsys, start_method, method):
    """Decoding, the fill of the cache and cached rows on disk, all through worker processes."""
    data, run = synthetic.manifest(tmp_path), tmp_path / "run"
    start_method(method)
    options = ["--data", data, "--workers", "1", "--out", run, "--cache", "disk", "--cache-folder", tmp_path / "c"]
    code = main(["train", *map(str, options), "--epochs", "2", "--batch", "16", "--device", "cpu"])
    assert code == 0, capsys.readouterr().err
    assert (run / "result.json").is_file()


def picklable(thing):
    """What a worker that is not forked is handed, there and back."""
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(thing)
    return pickle.loads(buffer.getvalue())


@pytest.mark.parametrize("policy", ["plain", "official"])
def test_what_workers_are_given_can_be_pickled(tmp_path, policy):
    backbone = load_backbone("tiny")
    tokenize = with_policy(backbone.tokenizer, policy, backbone.empty_text)
    data = [synthetic.manifest(tmp_path), synthetic.manifest(tmp_path, ".parquet"), synthetic.arrow(tmp_path, "mmimdb")]
    for source in data:
        dataset = open_dataset(str(source), "train")
        inputs = Inputs(dataset, dataset.present(), backbone.preparing(tokenize))
        again = picklable(inputs)
        for one, other in zip(inputs[3].values(), again[3].values(), strict=True):
            assert torch.equal(one, other)
    long = ["word " * 100, "a b"]
    assert torch.equal(picklable(tokenize)(long), tokenize(long))


def test_what_open_clip_gives_can_be_pickled():
    for mode in ("shortest", "longest", "squash"):
        picklable(open_clip.image_transform(64, is_train=False, resize_mode=mode))
    picklable(with_policy(open_clip.get_tokenizer("ViT-B-16-quickgelu"), "official", torch.tensor([49406, 49407, 0])))


def test_cached_rows_are_sent_to_workers_without_the_model(tmp_path):
    import mora

    samples = worlds.Samples()
    model = worlds.classifier("open_clip")
    cache = mora.PrefixCache(model, samples, folder=tmp_path, parts={"data": "worlds"})
    cache.fill()
    splits = fakes.splits(12)
    preparing = Preparing(None, None, {}, {"image": None, "text": None})
    inputs = Inputs(splits["train"], splits["train"].present(), preparing)
    cached = CachedInputs(cache, inputs)
    again = picklable(cached)
    assert again.cache is None
    for name, tensor in cached.__getitems__([1, 4]).items():
        assert torch.equal(tensor, again.__getitems__([1, 4])[name]), name


def test_a_killed_worker_is_named(tmp_path, capsys, monkeypatch):
    from mora.data.sources.manifest import ManifestSplit

    def killed(self, index):
        if multiprocessing.current_process().name != "MainProcess":
            os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    data = synthetic.manifest(tmp_path)
    monkeypatch.setattr(ManifestSplit, "__getitem__", killed)
    given = ["--data", str(data), "--device", "cpu", "--workers", "1", "--epochs", "1", "--batch", "8"]
    assert main(["train", "--out", str(tmp_path / "run"), *given]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("mora train: workers: the process ") and "that reads samples" in said, said
    with (
        pytest.raises(ChildProcessError, match="the process 7 that reads samples was killed by signal Killed"),
        workers.lost_workers(),
    ):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="another"), workers.lost_workers():
        raise RuntimeError("another")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_number_of_workers_is_bounded_by_the_cores(tmp_path, capsys, command):
    given = ["--data", str(synthetic.manifest(tmp_path)), "--out", str(tmp_path / "out"), "--workers", "1000000"]
    assert main([command, *given, *(["--model", "run"] if command == "evaluate" else [])]) == 2
    cores = len(os.sched_getaffinity(0))
    assert (
        f"workers: got 1000000, expected at most {8 * cores}: 8 for each of the {cores} cores"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def grouped(arguments):
    """The command, in a group of processes of its own."""
    os.setsid()
    return main(arguments)


def test_a_signal_to_the_whole_group_loses_no_step(tmp_path):
    """As schedulers, terminals and service managers send it: the workers live until the checkpoint is written."""
    number = signal.SIGTERM
    data, run = synthetic.manifest(tmp_path), tmp_path / "run"
    given = ["--data", data, "--out", run, "--device", "cpu", "--workers", "2", "--batch", "8", "--epochs", "100000"]
    running = Running(grouped, ["train", *map(str, given), "--log-every", "1", "--cache", "off"])
    lines = 0
    while lines < 4:
        time.sleep(0.05)
        assert running.process.is_alive(), running.end()
        lines = (run / "metrics.jsonl").read_text().count("\n") if (run / "metrics.jsonl").is_file() else 0
    os.killpg(running.process.pid, number)
    ended = running.end(60)
    said = ended.err.splitlines()
    assert ended.code == 128 + number, said
    assert f"stopped by {number.name} after step" in said[-1] and "--resume goes on" in said[-1], said
    assert list((run / "checkpoints").glob("*.safetensors"))


def test_a_worker_that_is_stuck_is_ended_by_a_second_sigterm():
    process = multiprocessing.get_context("fork").Process(target=stuck)
    process.start()
    for _ in range(100):
        process.terminate()
        process.join(0.2)
        if process.exitcode is not None:
            break
    assert process.exitcode == -signal.SIGTERM


def stuck():
    workers.leave_signals(0)
    time.sleep(60)
