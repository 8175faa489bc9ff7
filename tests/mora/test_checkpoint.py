"""save_adapter, load_adapter, load_official: exact round trips, and refusals that leave the model as it was."""

import errno
import json
import os
import pickle

import pytest
import torch
import transformers
from safetensors.torch import load, save_file

import mora
from mora.system.files import digest
from tests.mora.models import GOLDEN, MODELS, embed, hugging_face_model, open_clip_model, randomise

families = pytest.mark.parametrize("family", MODELS)


@torch.no_grad()
def embeddings(model):
    return embed(model)


@pytest.fixture(params=MODELS)
def make(request):
    """The maker of one family's untouched model."""
    return MODELS[request.param]


@pytest.fixture
def saved(make, tmp_path):
    model = randomise(mora.patch(make(), rank={"image": 3, "text": 4}, common_rank=2, dropout=0.2))
    return model, mora.save_adapter(model, tmp_path / "adapter")


def rewrite(folder, tensors=None, config=None, **fields):
    """Change a saved adapter as an attacker or another version would, checksum included."""
    content = json.loads((folder / "adapter_config.json").read_text())
    if tensors is not None:
        save_file(tensors, folder / "adapter_model.safetensors")
        content["weights_sha256"] = digest((folder / "adapter_model.safetensors").read_bytes())
    content["config"].update(config or {})
    content.update(fields)
    (folder / "adapter_config.json").write_text(json.dumps(content))


def refused(model, folder, message, error=ValueError):
    """Loading raises and leaves the model bit for bit as it was."""
    weights, modules = {n: t.clone() for n, t in model.state_dict().items()}, dict(model.named_modules())
    with pytest.raises(error, match=message):
        mora.load_adapter(model, folder)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@families
def test_round_trip_between_families(family, tmp_path):
    first = randomise(mora.patch(MODELS[family](), targets=("k", "out")))
    folder = mora.save_adapter(first, tmp_path / "again")
    fresh = mora.load_adapter(MODELS[family](), folder)
    assert all(torch.equal(a, b) for a, b in zip(embeddings(first), embeddings(fresh), strict=True))
    assert fresh.mora.config == first.mora.config
    other = next(name for name in MODELS if name != family)
    moved = mora.adapter_state_dict(mora.load_adapter(MODELS[other](), folder, base="any"))
    assert all(torch.equal(tensor, moved[name]) for name, tensor in mora.adapter_state_dict(first).items())
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_loads_into_a_patched_model_and_over_itself(make, saved):
    model, folder = saved
    other = mora.patch(make(), rank={"image": 3, "text": 4}, common_rank=2, dropout=0.0)
    for _ in range(2):
        mora.load_adapter(other, folder)
        assert all(torch.equal(a, b) for a, b in zip(embeddings(model), embeddings(other), strict=True))
    assert other.mora.config.dropout == 0.0
    mora.save_adapter(randomise(other), folder)
    assert not torch.equal(embeddings(mora.load_adapter(model, folder))[0], embeddings(make())[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 5}, "rank: .* has {'image': 3, 'text': 4}, the patched model has {'image': 5, 'text': 5}"),
        ({"common_rank": 3}, "common_rank: .* has 2, the patched model has 3"),
        ({"alpha": 0.02}, "alpha: .* has 0.01, the patched model has 0.02"),
        ({"targets": ("k", "v")}, r"targets: .* has \('q', 'v'\), the patched model has \('k', 'v'\)"),
        ({"variant": "no-gram"}, "variant: .* has 'official', the patched model has 'no-gram'"),
        ({"last_layers": 1}, "layers: .*expected the same blocks"),
    ],
)
def test_another_configuration_is_refused(make, saved, options, message):
    options = {"rank": {"image": 3, "text": 4}, "common_rank": 2, **options}
    refused(mora.patch(make(), **options), saved[1], message)


def test_tensors_that_do_not_fit_are_refused(make, saved):
    _, folder = saved
    good = load((folder / "adapter_model.safetensors").read_bytes())
    name = "image.3.v.specific_a"
    for tensors, message in [
        ({n: t for n, t in good.items() if n != name}, f"missing {name}"),
        ({**good, "image.3.v.bonus": torch.zeros(1)}, r"unexpected image\.3\.v\.bonus"),
        ({**good, name: torch.zeros(64, 9)}, rf"{name} has shape \(64, 9\), expected \(64, 3\)"),
        ({**good, name: good[name].to(torch.int32)}, f"{name} has dtype torch.int32"),
        ({**good, name: good[name] * float("nan")}, f"{name} has NaN or infinite"),
    ]:
        rewrite(folder, tensors)
        refused(make(), folder, message)
        refused(mora.patch(make(), rank={"image": 3, "text": 4}, common_rank=2), folder, message)


def resized(**text):
    """A tiny Hugging Face CLIP whose text tower has other sizes."""
    config = hugging_face_model().config
    for name, value in text.items():
        setattr(config.text_config, name, value)
    return transformers.CLIPModel(config)


@pytest.mark.parametrize(
    ("narrow", "deep"),
    [
        (lambda: open_clip_model(width=32), lambda: open_clip_model(4, 5)),
        (lambda: resized(hidden_size=32), lambda: resized(num_hidden_layers=5)),
    ],
    ids=["open_clip", "hugging_face"],
)
def test_another_width_or_depth_is_refused(narrow, deep, saved):
    refused(narrow(), saved[1], r"common\.0\.text has shape \(48, 2\), expected \(32, 2\)")
    refused(deep(), saved[1], "layers: .*expected the same blocks")


def test_a_pickle_is_refused(make, saved, tmp_path):
    _, folder = saved
    weights = folder / "adapter_model.safetensors"
    torch.save(load(weights.read_bytes()), weights)
    refused(make(), folder, "got a pickle, expected safetensors")
    weights.write_bytes(pickle.dumps({"a": 1}))
    refused(make(), folder, "got a pickle, expected safetensors")
    empty = tmp_path / "bin"
    empty.mkdir()
    torch.save({}, empty / "adapter_model.bin")
    refused(make(), empty, r"adapter_model\.bin.*expected adapter_config\.json", FileNotFoundError)


def test_a_header_that_starts_like_a_pickle_is_read(tmp_path):
    from mora.system.files import pack_tensors, read_tensors

    for length in range(260):
        data = pack_tensors({"a": torch.zeros(1)}, {"note": "x" * length})
        (tmp_path / "file").write_bytes(data)
        assert list(read_tensors(tmp_path / "file")[0]) == ["a"]


def test_damaged_files_are_refused(make, saved, tmp_path):
    _, folder = saved
    weights = folder / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    refused(make(), folder, "damaged safetensors")
    weights.write_bytes(data[:-4] + b"\0\0\0\0")
    refused(make(), folder, "SHA-256")
    weights.write_bytes(data)
    config = folder / "adapter_config.json"
    for text, message in [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ("{}", "'config' is None"),
        ('{"peft_type": "LORA", "r": 8}', "expected lora_A.weight"),
    ]:
        config.write_text(text)
        refused(make(), folder, message)
    refused(make(), tmp_path / "nowhere", "no such folder", FileNotFoundError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"rank": 4096}}, "rank|shape"),
        ({"config": {"lora_rank": 1}}, "lora_rank: got an unknown field"),
        ({"format": 2}, "format 2, expected 1"),
        ({"layers": {"image": [0, 1], "text": [2, 3]}}, "expected the same blocks"),
    ],
    ids=str,
)
def test_a_hostile_configuration_is_refused(make, saved, change, message):
    rewrite(saved[1], **change)
    refused(make(), saved[1], message)


def test_a_save_cut_short_is_noticed(make, saved, monkeypatch):
    model, folder = saved
    import mora.checkpoint.adapter as module

    def fail_on_config(path, data):
        if path.name == "adapter_config.json":
            raise OSError("disk full")
        module_write(path, data)

    module_write = module.write_bytes
    monkeypatch.setattr(module, "write_bytes", fail_on_config)
    with pytest.raises(OSError, match="disk full"):
        mora.save_adapter(randomise(model), folder)
    refused(make(), folder, "SHA-256")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def official(**changes):
    """The golden checkpoint's content with changes; None removes a key."""
    content = torch.load(GOLDEN / "official_qv_rank4.best_model.pt", weights_only=True)
    for key, value in changes.items():
        if value is None:
            content.pop(key)
        else:
            content[key] = value
    return content


FIRST = "model.text_model.encoder.layers.2.self_attn.v_proj"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: official(**{f"{FIRST}.modality_A": None}), r"missing text\.2\.v\.specific_a"),
        (lambda: official(**{f"{FIRST}.modality_C": torch.zeros(1)}), "unexpected tensor .*modality_C"),
        (lambda: official(**{f"{FIRST}.modality_A": torch.zeros(40, 4)}), r"shape \(40, 4\), expected \(48, 4\)"),
        (lambda: official(_metadata=None), "without _metadata"),
        (lambda: official(_metadata={"alpha": 0.1}), "_metadata lacks num_classes"),
        (lambda: official(**{"cls_head.bias": None}), "no cls_head.weight and cls_head.bias"),
        (lambda: [1, 2], "without _metadata"),
    ],
)
def test_wrong_official_checkpoints_are_refused(make, content, message, tmp_path):
    torch.save(content(), tmp_path / "best_model.pt")
    model = make()
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        mora.load_official(model, tmp_path / "best_model.pt")
    assert list(model.state_dict()) == list(weights)
    with pytest.raises(FileNotFoundError, match="expected an existing best_model.pt"):
        mora.load_official(model, tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.1}, "alpha: .* has 0.01, the patched model has 0.1"),
        ({"rank": 8}, "rank"),
        ({"targets": ("k", "v")}, "targets"),
        ({"last_layers": 1}, "layers"),
        ({"variant": "no-specific"}, "variant"),
    ],
)
def test_an_official_checkpoint_of_another_configuration(make, options, message):
    model = randomise(mora.patch(make(), **options))
    before = {n: t.clone() for n, t in mora.adapter_state_dict(model).items()}
    with pytest.raises(ValueError, match=message):
        mora.load_official(model, GOLDEN / "official_qv_rank4.best_model.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in mora.adapter_state_dict(model).items())


def test_an_official_checkpoint_loads_into_a_patched_model_and_over_itself(make):
    path, model = GOLDEN / "official_qv_rank4.best_model.pt", make()
    if embed(model)[0].shape[1] != 32:
        with pytest.raises(ValueError, match="cls_head.weight has shape"):
            mora.load_official(model, path)
        return
    head = mora.load_official(model, path)
    other = randomise(mora.patch(make(), first_layer=2))
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(mora.load_official(other, path), head, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(embeddings(model), embeddings(other), strict=True))


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_code_in_an_official_checkpoint_does_not_run(make, tmp_path):
    torch.save(official(bad=Hostile()), tmp_path / "best_model.pt")
    with pytest.raises(ValueError, match="weights_only=True"):
        mora.load_official(make(), tmp_path / "best_model.pt")


def test_save_official_needs_what_that_format_can_hold(make, tmp_path):
    head = torch.nn.Linear(64, 2)
    with pytest.raises(ValueError, match="variant 'no-gram'"):
        mora.save_official(mora.patch(make(), variant="no-gram"), tmp_path / "a.pt", head)
    with pytest.raises(ValueError, match="different block indices"):
        mora.save_official(mora.patch(open_clip_model(4, 6)), tmp_path / "a.pt", head)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    from mora.system.files import write_bytes

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "kept").write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*kept'"):
        write_bytes(tmp_path / "kept", b"after")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]
