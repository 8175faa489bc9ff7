"""Crafted checkpoints, and saving: a ValueError with the path, the model and the file as they were."""

import contextlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load, save_file

import mora
from mora.system.files import digest
from tests.mora.models import GOLDEN, MODELS, hugging_face_model, randomise
from tests.mora.test_checkpoint import FIRST, official

families = pytest.mark.parametrize("family", MODELS)
A = f"{FIRST}.modality_A"
GOOD = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))


def metadata(**changes):
    return official(_metadata={**official()["_metadata"], **changes})


def layers(index):
    return {**official(), f"model.text_model.encoder.layers.{index}.self_attn.v_proj.modality_A": GOOD}


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, dict(model.named_modules())


def unchanged(model, before):
    tensors, modules = before
    assert dict(model.named_modules()) == modules
    now = model.state_dict()
    assert list(now) == list(tensors) and all(torch.equal(now[name], tensor) for name, tensor in tensors.items())


CRAFTED = {
    "expanded": (lambda: official(**{A: torch.zeros(1).expand(2**40)}), "modality_A has shape .* over 4 bytes"),
    "expanded to fit": (lambda: official(**{A: torch.zeros(1).expand(48, 4)}), "modality_A has shape .* over 4 bytes"),
    "sparse": (lambda: official(**{A: GOOD.to_sparse()}), "modality_A is sparse_coo"),
    "sparse rows": (lambda: official(**{A: GOOD.to_sparse_csr()}), "modality_A is sparse_csr"),
    "meta": (lambda: official(**{A: GOOD.to("meta")}), "modality_A is on the meta device"),
    "float8": (lambda: official(**{A: GOOD.to(torch.float8_e4m3fn)}), "specific_a has dtype torch.float8_e4m3fn"),
    "complex": (lambda: official(**{A: GOOD.to(torch.complex64)}), "specific_a has dtype torch.complex64"),
    "int": (lambda: official(**{A: GOOD.to(torch.int64)}), "specific_a has dtype torch.int64"),
    "quantised": (
        lambda: official(**{A: torch.quantize_per_tensor(GOOD, 0.1, 0, torch.qint8)}),
        "modality_A is quantised",
    ),
    "a number for a key": (lambda: {**official(), 3: GOOD}, "the key 3"),
    "a tuple for a key": (lambda: {**official(), (3, "x"): GOOD}, "the key"),
    "text": (lambda: official(**{A: "x"}), "modality_A is a str"),
    "shared text": (lambda: {**official(), "shared_params_dict.layer_2.shared_A": "x"}, "shared_A is a str"),
    "shared otherwise": (
        lambda: {**official(), "shared_params_dict.layer_2.shared_A": GOOD.double()},
        "differs from its other copy",
    ),
    "two magnitudes": (
        lambda: official(**{f"{FIRST}.shared_magnitude": torch.ones(2, 48)}),
        "common_magnitude has shape",
    ),
    "no magnitude": (
        lambda: official(**{f"{FIRST}.shared_magnitude": torch.ones(0, 48)}),
        "common_magnitude has shape",
    ),
    "1e300": (
        lambda: official(**{A: torch.full((48, 4), 1e300, dtype=torch.float64)}),
        "specific_a has NaN or infinite elements",
    ),
    "a head of text": (lambda: official(**{"cls_head.weight": "x"}), "cls_head.weight is a str"),
    "a head of another width": (
        lambda: official(**{"cls_head.weight": torch.zeros(7, 5)}),
        "cls_head.weight has shape",
    ),
    "a head of other classes": (lambda: official(**{"cls_head.bias": torch.zeros(3)}), "cls_head.bias has shape"),
    "a head of NaN": (lambda: official(**{"cls_head.bias": torch.full((7,), torch.nan)}), "cls_head.bias has NaN"),
    "an expanded head": (
        lambda: {**metadata(num_classes=2**30), "cls_head.weight": torch.zeros(1).expand(2**30, 64)},
        "cls_head.weight has shape .* over 4 bytes",
    ),
    "classes of text": (lambda: metadata(num_classes="7"), "num_classes is '7'"),
    "alpha of text": (lambda: metadata(alpha="x"), "alpha: got 'x'"),
    "alpha of 10^400": (lambda: metadata(alpha=10**400), "alpha: got 1000"),
    "alpha of 1e308": (lambda: metadata(alpha=1e308), r"alpha: got 1e\+308"),
    "a huge rank": (lambda: metadata(text_rank=10**400), r"rank\['text'\]: got 1000"),
    "a list for a rank": (lambda: metadata(text_rank=[4]), r"rank\['text'\]: got \[4\]"),
    "block 10^9": (lambda: layers(10**9), "unexpected tensor"),
    "block of 5,000 digits": (lambda: layers("9" * 5000), "unexpected tensor"),
    "block 02": (lambda: layers("02"), "unexpected tensor"),
    "block 9999": (lambda: layers(9999), "expected consecutive ones"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_official_checkpoints(name, patched, tmp_path):
    make, message = CRAFTED[name]
    path = tmp_path / "best_model.pt"
    torch.save(make(), path)
    model = randomise(mora.patch(hugging_face_model())) if patched else hugging_face_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message) as caught:
        mora.load_official(model, path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000
    unchanged(model, before)


def test_a_truncated_official_checkpoint_at_every_length(tmp_path):
    data, path, model = (
        (GOLDEN / "official_qv_rank4.best_model.pt").read_bytes(),
        tmp_path / "cut.pt",
        hugging_face_model(),
    )
    before = snapshot(model)
    for length in range(0, len(data), len(data) // 40):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut\.pt"):
            mora.load_official(model, path)
    unchanged(model, before)


def test_an_official_path_that_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder, expected a regular file"):
        mora.load_official(hugging_face_model(), tmp_path)


@pytest.fixture
def saved(tmp_path):
    model = randomise(mora.patch(hugging_face_model()))
    return mora.save_adapter(model, tmp_path / "adapter")


def rewrite(folder, tensors=None, **config):
    content = json.loads((folder / "adapter_config.json").read_text())
    if tensors is not None:
        save_file(tensors, folder / "adapter_model.safetensors")
        content["weights_sha256"] = digest((folder / "adapter_model.safetensors").read_bytes())
    content["config"].update(config)
    (folder / "adapter_config.json").write_text(json.dumps(content))


WRONG = [None, [], [[4]], {}, "4", True, -1, 10**400, float("nan"), 1e308]
NONE = ("common_rank", "first_layer", "layers", "adapt", "gram", "lora_alpha", "rank_pattern", "alpha_pattern")
DIGITS = 10**5000  # more than Python prints


# The backend is not part of an adapter: what a file says of it is not read.
@pytest.mark.parametrize("field", [name for name in mora.MoraConfig.__dataclass_fields__ if name != "backend"])
def test_a_configuration_of_any_wrong_type_names_the_field_and_the_file(field, saved):
    allowed = {name: [None] for name in NONE}.get(field, [])
    model = hugging_face_model()
    before = snapshot(model)
    for value in WRONG:
        if value in allowed:
            continue
        rewrite(saved, **{field: value})
        # NaN is refused with the text, 1e308 by its field
        with pytest.raises(ValueError, match=rf"adapter_config\.json: ({field}.*got|got the number NaN)"):
            mora.load_adapter(model, saved)
        with pytest.raises(ValueError, match=rf"^{field}.*got .*expected"):
            mora.MoraConfig.from_dict({field: value})
    with pytest.raises(ValueError, match=rf"^{field}.*got a int of thousands of digits"):
        mora.MoraConfig(**{field: DIGITS})
    unchanged(model, before)


@pytest.mark.parametrize("fields", [None, [], "x", 3, {3: 4}, {"a\nb": 1}, {"x" * 10_000: 1}], ids=lambda f: str(f)[:9])
def test_fields_that_are_no_fields(fields):
    with pytest.raises(ValueError, match="expected (a mapping of |some of )?rank, common_rank") as caught:
        mora.MoraConfig.from_dict(fields)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_adapters_with_tensors_of_other_kinds(saved):
    good = load((saved / "adapter_model.safetensors").read_bytes())
    name, model = "image.3.v.specific_a", hugging_face_model()
    before = snapshot(model)
    for tensor, message in [
        (torch.full((64, 4), 1e300, dtype=torch.float64), "has NaN or infinite"),
        (good[name].to(torch.float8_e4m3fn), "has dtype torch.float8_e4m3fn"),
        (good[name].to(torch.complex64), "has dtype torch.complex64"),
        (good[name].bool(), "has dtype torch.bool"),
        (torch.zeros(64, 10_000), "bytes, expected at most"),  # refused by size, before it is read
    ]:
        rewrite(saved, {**good, name: tensor})
        with pytest.raises(ValueError, match=rf"adapter_model\.safetensors.*{message}"):
            mora.load_adapter(model, saved)
    rewrite(saved, {**good, **{f"more.{i}\n": torch.zeros(1) for i in range(100)}})
    with pytest.raises(ValueError, match=r"unexpected more\.\d+\\n, .* and 90 more") as caught:
        mora.load_adapter(model, saved)
    assert "\n" not in str(caught.value)
    unchanged(model, before)


@families
def test_what_the_adapters_dtype_cannot_hold_changes_nothing(family, tmp_path):
    big = randomise(mora.patch(MODELS[family]()))
    with torch.no_grad():
        dict(mora.adapter_parameters(big))["image.3.v.common_magnitude"][0] = 1e5
    folder = mora.save_adapter(big, tmp_path / "big")
    half = randomise(mora.patch(MODELS[family](), backend="torch")).half()
    before = snapshot(half)
    with pytest.raises(ValueError, match=r"image\.3\.v\.common_magnitude .*infinite in torch\.float16"):
        mora.load_adapter(half, folder)
    unchanged(half, before)


def spoil(model, value):
    with torch.no_grad():
        dict(mora.adapter_parameters(model))["text.3.q.specific_b"][1, 2] = value
    return model


@families
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_saving_refuses_what_loading_refuses(family, value, tmp_path):
    """A second step in float16 without loss scaling makes NaN; the good adapter of before must survive."""
    model = randomise(mora.patch(MODELS[family]()))
    folder = mora.save_adapter(model, tmp_path / "adapter")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    spoil(model, value)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(ValueError, match=r"text\.3\.q\.specific_b has NaN or infinite elements"):
            mora.save_adapter(model, target)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert not (tmp_path / "new").exists()
    mora.load_adapter(MODELS[family](), folder)


def test_half_precision_training_does_not_destroy_the_last_good_adapter(tmp_path):
    """As a user does it: `.half()` after `patch`, AdamW without loss scaling."""
    model = mora.patch(hugging_face_model(), dropout=0.0, backend="torch").half().train()
    optimizer = torch.optim.AdamW([parameter for _, parameter in mora.adapter_parameters(model)], lr=1e-2)
    saved_steps = []
    for step in range(4):
        with contextlib.suppress(ValueError):
            mora.save_adapter(model, tmp_path / "adapter")
            saved_steps.append(step)
        optimizer.zero_grad()
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).half()
        model.get_image_features(pixel_values=pixels).pooler_output.float().square().sum().mul(1e4).backward()
        optimizer.step()
    assert 0 < len(saved_steps) < 4
    mora.load_adapter(hugging_face_model(), tmp_path / "adapter")


def test_save_official_refuses_too(tmp_path):
    model, path = randomise(mora.patch(hugging_face_model())), tmp_path / "best_model.pt"
    head = torch.nn.Linear(64, 3)
    mora.save_official(model, path, head)
    data = path.read_bytes()
    with pytest.raises(ValueError, match=r"best_model\.pt: cls_head\.weight has NaN"):
        mora.save_official(model, path, (head.weight * torch.nan, head.bias))
    with pytest.raises(ValueError, match=r"best_model\.pt: .*q_proj\.modality_B has NaN"):
        mora.save_official(spoil(model, torch.nan), path, head)
    assert path.read_bytes() == data and [entry.name for entry in tmp_path.iterdir()] == ["best_model.pt"]


@pytest.mark.parametrize("method", ["mora", "bitfit", "linear"])
def test_the_best_epoch_of_a_run_stays(method, tmp_path):
    from mora.runs.methods import adapt
    from mora.runs.run import load_best, save_best

    config = mora.MoraConfig()
    clip = MODELS["open_clip"]()
    adapt(clip, method, config, 1.0)
    model = mora.MissingModalityClassifier(clip, 3)
    save_best(tmp_path / "best", model, method, config, {"epoch": 1})
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "best", kept)
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"best: head\.bias has NaN"):
        save_best(tmp_path / "best", model, method, config, {"epoch": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "kept"]
    assert all((kept / path.name).read_bytes() == path.read_bytes() for path in (tmp_path / "best").iterdir())
    fresh = mora.MissingModalityClassifier(MODELS["open_clip"](), 3)
    load_best(tmp_path / "best", fresh, method, config, 1.0)
