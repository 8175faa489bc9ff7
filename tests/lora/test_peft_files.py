"""PEFT's files both ways, and updates of other methods as a LoRA."""

import copy
import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import mora
from mora_kernels.testing import assert_parity
from tests.lora.test_peft_parity import SETTINGS, both
from tests.mora.models import embed, hugging_face_model, open_clip_model, open_clip_twin, randomise

TABLE = {torch.float32: 2e-5}
WHOLE = ("q", "k", "v", "out", "fc1", "fc2")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@torch.no_grad()
def same(model, other, table=TABLE):
    for one, expected in zip(embed(model), embed(other), strict=True):
        assert_parity("embedding", one, expected, table)


def from_peft(folder):
    """A Hugging Face CLIP on which PEFT loaded a folder; nothing of it may be missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of what is missing, and goes on
        return peft.PeftModel.from_pretrained(hugging_face_model(), folder).base_model.model.eval()


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_peft_loads_what_mora_wrote_and_the_other_way_round(method, settings, tmp_path):
    model, other = both(method, ("q", "v"), torch.float32, ours=SETTINGS[settings][0], theirs=SETTINGS[settings][1])
    same(from_peft(mora.save_adapter(model, tmp_path / "ours", format="peft")), model)
    wrapped = peft.get_peft_model(hugging_face_model(), other.peft_config["default"])
    wrapped.load_state_dict({f"base_model.model.{name}": value for name, value in other.state_dict().items()})
    wrapped.save_pretrained(tmp_path / "theirs")
    read = mora.load_adapter(hugging_face_model(), tmp_path / "theirs")
    same(read, model)
    mora.verify(read)
    again = mora.load_adapter(mora.load_adapter(hugging_face_model(), tmp_path / "ours"), tmp_path / "theirs")
    same(again, model)
    same(mora.load_adapter(hugging_face_model(), mora.save_adapter(read, tmp_path / "native")), model)


def test_one_tower_beside_another_adapter(tmp_path):
    """A LoRA of every kind of linear in one tower goes through PEFT's files, and is put beside a MoRA."""
    model = hugging_face_model()
    mora.patch(model, adapt={"image": "lora", "text": "frozen"}, targets=WHOLE, last_layers={"image": 1}, rank=3)
    folder = mora.save_adapter(randomise(model), tmp_path, format="peft")
    same(from_peft(folder), model)
    other = mora.patch(hugging_face_model(), name="first")
    mora.load_adapter(other, folder, name="second")
    same(mora.set_adapter(other, "second"), model)


def test_split_projections_of_open_clip(tmp_path):
    """open_clip's packed attention: names as after a split, which mora reads again; a regex where ends are shared."""
    model = open_clip_model()
    mora.patch(model, method="dora", targets=WHOLE, rank=3, last_layers=2)
    folder = mora.save_adapter(randomise(model), tmp_path, format="peft")
    names = load_file(folder / WEIGHTS)
    assert "base_model.model.visual.transformer.resblocks.3.attn.q.lora_A.weight" in names
    assert "base_model.model.transformer.resblocks.3.mlp.c_fc.lora_magnitude_vector" in names
    assert isinstance(json.loads((folder / CONFIG).read_text())["target_modules"], str)
    same(mora.load_adapter(open_clip_model(), folder), model)


def test_files_of_pefts_packed_attention(tmp_path):
    """q, k, v of PEFT's LoRA on `nn.MultiheadAttention` are read; an out_proj that it adds twice is refused."""
    wrapped = peft.get_peft_model(open_clip_model(), peft.LoraConfig(r=3, target_modules=["attn"], lora_alpha=6))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "out_proj" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    wrapped.eval().save_pretrained(tmp_path / "packed")
    model = mora.load_adapter(open_clip_model(), tmp_path / "packed")
    same(model, wrapped.base_model.model)
    with torch.no_grad():
        wrapped.base_model.model.visual.transformer.resblocks[0].attn.base_layer.out_proj.lora_B.default.weight.add_(1)
    wrapped.save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match=r"resblocks.0.attn.base_layer.out_proj is the out_proj of PEFT's Multihead"):
        mora.load_adapter(open_clip_model(), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_bias": True}, "lora_bias is True, expected none: not supported"),
        ({"bias": "all"}, "bias is 'all', expected none"),
        ({"modules_to_save": ["visual_projection"]}, "modules_to_save is"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"use_mora": True}, "another MoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the pretrained weights"),
        ({"r": 5}, "has rank 3, adapter_config.json says 5"),
        ({"something_new": 1}, "something_new is 1, expected none"),
        ({"use_dora": True}, "has lora_A, lora_B, expected"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message, tmp_path):
    model = mora.patch(hugging_face_model(), method="lora", rank=3)
    folder = mora.save_adapter(model, tmp_path, format="peft")
    fields = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**fields, **change}))
    fresh = hugging_face_model()
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        mora.load_adapter(fresh, folder)
    assert not hasattr(fresh, "mora")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base_model.model.text_model.embeddings.token_embedding.lora_embedding_A", "embeddings are not adapted"),
        ("base_model.model.visual_projection.lora_A.weight", "visual_projection is no projection that mora adapts"),
        ("base_model.model.text_model.encoder.layers.3.self_attn.q_proj.lora_B.bias", r"\(lora_bias\)"),
        (
            "base_model.model.text_model.encoder.layers.3.self_attn.out_proj.lora_A.weight",
            "has lora_A, expected lora_A, lora_B",
        ),
    ],
)
def test_strange_tensors_are_refused(name, message, tmp_path):
    folder = mora.save_adapter(mora.patch(hugging_face_model(), method="lora", rank=3), tmp_path, format="peft")
    save_file({**load_file(folder / WEIGHTS), name: torch.zeros(3, 48)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        mora.load_adapter(hugging_face_model(), folder)


def test_a_pickle_is_never_read_and_mora_is_no_lora(tmp_path):
    model = mora.patch(hugging_face_model(), method="lora", rank=3)
    folder = mora.save_adapter(model, tmp_path, format="peft")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickles are never read"):
        mora.load_adapter(hugging_face_model(), folder)
    with pytest.raises(ValueError, match="got 'peft' for an adapter of method mora"):
        mora.save_adapter(mora.patch(hugging_face_model()), tmp_path, format="peft")


@pytest.mark.parametrize("rank", [4, None])
def test_a_mora_becomes_a_lora_with_its_error_stated(rank, tmp_path):
    """What PEFT computes from the folder is W + the truncated update, on Hugging Face CLIP; the error is as stated."""
    model = mora.patch(hugging_face_model(), alpha=0.05, targets=("q", "v", "fc1"), init="identity")
    found = mora.to_peft(randomise(model), tmp_path, rank=rank, tolerance=0.2)
    expected, tensors = hugging_face_model(), load_file(tmp_path / WEIGHTS)
    left, whole = 0.0, 0.0
    for row, (name, projection) in zip(found.projections, model.mora.projections(), strict=True):
        assert row.name == name
        module = expected.get_submodule(row.module)
        a, b = (tensors[f"base_model.model.{row.module}.lora_{kind}.weight"].double() for kind in "AB")
        move = projection.effective_weight(projection.weight.double()) - projection.weight.double()
        values = torch.linalg.svdvals(move)
        best = values[row.rank :].norm() / values.norm()
        assert abs((move - b @ a).norm() / move.norm() - row.error) < 1e-6
        assert abs(best - row.error) < 1e-6, "no LoRA of this rank is nearer"
        energy = values.square().cumsum(0) / values.square().sum()
        assert energy[row.rank_99 - 1] >= 0.99 > energy[row.rank_99 - 2]
        assert (
            (row.rank == rank) if rank else (row.error <= 0.2 and values[row.rank - 1 :].norm() > 0.2 * values.norm())
        )
        left, whole = left + (move - b @ a).norm() ** 2, whole + move.norm() ** 2
        module.weight.data += (b @ a).float()
    assert abs(found.error - (left / whole) ** 0.5) < 1e-6
    same(from_peft(tmp_path), expected)
    assert json.loads((tmp_path / "mora_to_peft.json").read_text())["relative_frobenius_error"] == found.error
    assert "99 % of their energy takes rank" in (tmp_path / "README.md").read_text()
    assert str(found).count("\n") > len(found.projections)


def test_an_open_clip_update_loads_on_the_same_weights_in_transformers(tmp_path):
    """All singular values, under Hugging Face's names: the twin computes what the patched open_clip model does."""
    plain = hugging_face_model()
    twin = mora.patch(open_clip_twin(plain), targets=WHOLE, init="identity")
    mora.to_peft(randomise(twin), tmp_path, rank=200, names="hugging_face")
    same(from_peft(tmp_path), twin)
    same(mora.load_adapter(copy.deepcopy(plain), tmp_path), twin)
    with pytest.raises(ValueError, match="^rank: got 0"):
        mora.to_peft(twin, tmp_path, rank=0)
    with pytest.raises(ValueError, match="^tolerance: got 2"):
        mora.to_peft(twin, tmp_path, tolerance=2)
