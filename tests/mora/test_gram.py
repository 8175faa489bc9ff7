"""G of more than two towers: the mean of the others' Gram matrices unless their sum is asked for; two as ever."""

import json

import pytest
import torch

import mora
from mora.adapters.record import adapters_of
from tests.mora.models import open_clip_model, randomise
from tests.mora.test_your_own import TABLE, Three, assert_parity, embed, given, towers

OPTIONS = {"dropout": 0.0, "alpha": 0.05, "last_layers": 1}


def three(**options):
    model = Three()
    torch.manual_seed(7)
    return mora.patch(model, towers=towers(model), **{**OPTIONS, **options})


def expected(projection, scale):
    """W_eff by equation (1), written out in float64."""
    common = projection.common
    factors = {name: common.of(name).detach().double() for name in common.modalities}
    gram = scale * sum(f.T @ f for name, f in factors.items() if name != projection.modality)
    if projection.fixed_root is not None:
        widths = sum(len(f) for name, f in factors.items() if name != projection.modality)
        gram = scale * widths / common.rank * torch.eye(common.rank, dtype=torch.float64)
    own, w = factors[projection.modality], projection.weight.double()
    specific = (projection.specific_a.double() @ projection.specific_b.double()).T
    moved = w + 0.05 * own @ gram @ own.T, w + 0.05 * specific
    magnitudes = projection.common_magnitude.double(), projection.specific_magnitude.double()
    return sum(m * x / x.norm(dim=0) for m, x in zip(magnitudes, moved, strict=True)).detach()


@pytest.mark.parametrize(
    ("gram", "scale", "backend"),
    [(None, 0.5, "reference"), (None, 0.5, "torch"), ("mean", 0.5, "triton"), ("sum", 1.0, "torch")],
)
def test_three_towers(gram, scale, backend):
    """W_eff alone, and as the model computes with it."""
    model = randomise(three(gram=gram, backend=backend))
    for name, projection in model.mora.projections():
        assert_parity(name, projection.effective_weight(), expected(projection, scale), {torch.float32: 5e-6})
    inputs, want = given(), None
    with torch.no_grad():
        found = embed(model, inputs)
        want = embed(mora.merge(model), inputs)
    for one, other in zip(found, want, strict=True):
        assert_parity("embedding", one, other.double(), TABLE)


def test_two_towers_are_what_they_were():
    """Bit for bit whatever `gram` says, in weights, gradients and files."""
    found = []
    for options in ({}, {"gram": "mean"}, {"gram": "sum"}):
        torch.manual_seed(3)
        model = mora.patch(open_clip_model(), dropout=0.0, last_layers=1, **options)
        weights = [projection.effective_weight() for _, projection in model.mora.projections()]
        sum((weight**2).sum() for weight in weights).backward()
        found.append([*weights, *(parameter.grad for _, parameter in mora.adapter_parameters(model))])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found, strict=True))


def test_files_say_what_more_than_two_towers_have(tmp_path):
    torch.manual_seed(3)
    two = mora.patch(open_clip_model(), last_layers=1, gram="mean")
    saved = mora.save_adapter(two, tmp_path / "two") / "adapter_config.json"
    assert "gram" not in json.loads(saved.read_text())["config"], "one other has no mean: the file is as ever"
    mora.load_adapter(mora.patch(open_clip_model(), last_layers=1, gram="sum"), tmp_path / "two")

    model = randomise(three())
    folder = mora.save_adapter(model, tmp_path / "three")
    file = folder / "adapter_config.json"
    fields = json.loads(file.read_text())
    assert fields["config"]["gram"] == "mean"
    loaded, total = Three(), three(gram="sum")
    mora.load_adapter(loaded, folder, towers=towers(loaded))
    assert adapters_of(loaded).config.gram == "mean"
    for (_, one), (_, other) in zip(model.mora.projections(), loaded.mora.projections(), strict=True):
        assert torch.equal(one.effective_weight(), other.effective_weight())
    with pytest.raises(ValueError, match=r"^gram: .*three has 'mean', the patched model has 'sum': expected the same"):
        mora.load_adapter(total, folder)

    del fields["config"]["gram"]  # as earlier versions wrote it
    file.write_text(json.dumps(fields))
    earlier = Three()
    mora.load_adapter(earlier, folder, towers=towers(earlier))
    for _, projection in earlier.mora.projections():
        assert_parity("sum", projection.effective_weight(), expected(projection, 1.0), {torch.float32: 5e-6})
    mora.load_adapter(total, folder)


def test_lora_has_none_of_it(tmp_path):
    model = mora.patch(built := Three(), towers=towers(built), method="lora", last_layers=1)
    folder = mora.save_adapter(model, tmp_path)
    assert "gram" not in json.loads((folder / "adapter_config.json").read_text())["config"]
    other = Three()
    assert adapters_of(mora.load_adapter(other, folder, towers=towers(other))).config.gram is None


def test_variants_and_starts():
    """fixed-gram keeps what G is at the start; no-gram has none of it; the identity start is the pretrained model."""
    for gram, scale in ((None, 0.5), ("sum", 1.0)):
        model = randomise(three(variant="fixed-gram", gram=gram))
        for name, projection in model.mora.projections():
            assert_parity(name, projection.effective_weight(), expected(projection, scale), {torch.float32: 5e-6})
        assert "G: the" not in str(mora.summary(model))
        one, other = (dict(three(variant="no-gram", gram=g).mora.projections())["text.2.q"] for g in (gram, "sum"))
        assert torch.equal(one.effective_weight(), other.effective_weight())
        model, base, inputs = three(init="identity", gram=gram), Three(), given()
        for found, want in zip(embed(model, inputs), embed(base, inputs), strict=True):
            assert_parity("identity", found, want, TABLE)
    with pytest.raises(ValueError, match=r"^gram: got 'max', expected one of 'sum', 'mean'"):
        mora.MoraConfig(gram="max")


def test_a_pair_and_a_tower_alone():
    """The mean is over the others that share factors with a block: of one, or of its own, it is that."""
    model = randomise(three(last_layers={"image": 3, "text": 2, "audio": 1}))
    scales = {name: one.gram_scale for name, one in model.mora.projections() if name.endswith("q")}
    assert scales == {
        "image.0.q": 1,
        "image.1.q": 1,
        "text.1.q": 1,
        "image.2.q": 0.5,
        "text.2.q": 0.5,
        "audio.2.q": 0.5,
    }


def test_named_adapters_each_have_their_own():
    alone = {gram: randomise(three(gram=gram), 5) for gram in ("sum", "mean")}
    model, inputs = three(gram="sum"), given()
    mora.add_adapter(model, "other", mora.MoraConfig(**OPTIONS, gram="mean"))
    for name, gram in (("default", "sum"), ("other", "mean")):
        with torch.no_grad():
            own = mora.adapter_state_dict(alone[gram])
            for key, tensor in mora.adapter_state_dict(model, name).items():
                tensor.copy_(own[key])
        mora.set_adapter(model, name)
        for found, want in zip(embed(model, inputs), embed(alone[gram], inputs), strict=True):
            assert torch.equal(found, want)
        assert f"G: the {gram} of the Gram matrices" in str(mora.summary(model))


@pytest.mark.parametrize("gram", ["mean", "sum"])
def test_a_diagnosis_sees_the_same_matrix(gram):
    model = three(gram=gram)
    start = {name: tensor.clone() for name, tensor in mora.adapter_state_dict(model).items()}
    found = mora.diagnose(randomise(model), start=start)
    for one in found.grams:
        common = next(model.mora.common_factors())
        factors = [common.of(name).detach().double() for name in common.modalities if name != one.modality]
        matrix = (0.5 if gram == "mean" else 1.0) * sum(f.T @ f for f in factors)
        assert one.spectrum == pytest.approx(torch.linalg.eigvalsh(matrix).flip(0).tolist(), rel=1e-6)
    for one in found.projections:
        projection = dict(model.mora.projections())[one.name]
        weight = projection.weight.detach().double()
        total = (projection.effective_weight().detach().double() - weight).norm() / weight.norm()
        assert one.total_move == pytest.approx(float(total), rel=1e-5)
