"""What stands where an adapter goes: wrappers, hooks, other attention, shared modules; adapted right or refused."""

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel

import mora
from mora_kernels.testing import assert_parity
from tests.mora.models import MODELS, embed, hugging_face_model, open_clip_model, randomise

families = pytest.mark.parametrize("family", MODELS)
TABLE = {torch.float32: 2e-5}
ATTENTION = {"open_clip": "attn", "hugging_face": "self_attn"}


def towers(model):
    """The lists of blocks of a tiny model of either family."""
    if hasattr(model, "visual"):
        return model.visual.transformer.resblocks, getattr(model, "text", model).transformer.resblocks
    return model.vision_model.encoder.layers, model.text_model.encoder.layers


def attention(model, layer=-1):
    """The attention of an image block of either family."""
    block = towers(model)[0][layer]
    return block.attn if hasattr(block, "attn") else block.self_attn


def state(model):
    return dict(model.named_modules()), {name: t.clone() for name, t in model.state_dict().items()}


@torch.no_grad()
def embeddings(model):
    return [embedding.clone() for embedding in embed(model)]


class Forwarding(nn.Module):
    """A wrapper as people write them: calls what it holds, forwards whatever else is read."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["inner"], name)

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def wrap_blocks(wrapper):
    def apply(model):
        for blocks in towers(model):
            for layer, block in enumerate(blocks):
                blocks[layer] = wrapper(block)

    return apply


def wrap_attention(model):
    for blocks in towers(model):
        for block in blocks:
            name = "attn" if hasattr(block, "attn") else "self_attn"
            setattr(block, name, checkpoint_wrapper(getattr(block, name)))


WRAPPERS = {
    "checkpointed": wrap_blocks(checkpoint_wrapper),
    "forwarding": wrap_blocks(Forwarding),
    "twice": lambda model: [wrap_blocks(checkpoint_wrapper)(model), wrap_blocks(Forwarding)(model)],
    "attention": wrap_attention,
}


@families
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_block_is_adapted_inside_the_wrapper(family, wrap):
    """The same numbers as without wrappers: adapted, merged, and taken back."""
    plain = MODELS[family]()
    model = copy.deepcopy(plain)
    wrap(model)
    modules, weights = state(model)
    torch.manual_seed(0)
    mora.patch(plain, targets=("q", "v", "out"))
    torch.manual_seed(0)
    mora.patch(model, targets=("q", "v", "out"))
    expected = embeddings(randomise(plain))
    for name, one, other in zip(("image", "text"), embeddings(randomise(model)), expected, strict=True):
        assert_parity(name, one, other, TABLE)
    mora.verify(model)
    classifier = mora.MissingModalityClassifier(model, 3)
    assert all(not classifier.plan(modality).whole for modality in ("image", "text"))
    merged = mora.merge(copy.deepcopy(model))
    for name, one, other in zip(("image", "text"), embeddings(merged), expected, strict=True):
        assert_parity(name, one, other, TABLE)
    mora.unpatch(model)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


class Shifted(nn.MultiheadAttention):
    """An attention of the user's own: the stock one's result, twice."""

    def forward(self, *args, **kwargs):
        x, weights = super().forward(*args, **kwargs)
        return 2 * x, weights


class Named(nn.MultiheadAttention):
    """A subclass that computes what the stock one does."""


def other_class(kind):
    def change(model):
        attention(model).__class__ = kind

    return change


def other_forward(model):
    found = attention(model)
    stock = found.forward
    found.forward = lambda *args, **kwargs: stock(*args, **kwargs)


def parametrized(model):
    part = attention(model)
    part, name = (part, "in_proj_weight") if hasattr(part, "in_proj_weight") else (part.q_proj, "weight")
    nn.utils.parametrizations.weight_norm(part, name)


def pruned(model):
    from torch.nn.utils import prune

    part = attention(model)
    part, name = (part, "in_proj_weight") if hasattr(part, "in_proj_weight") else (part.q_proj, "weight")
    prune.l1_unstructured(part, name, amount=0.5)


def lora(target):
    def change(model):
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(target_modules=[target], r=2), model)

    return change


def share_blocks(model):
    blocks = towers(model)[0]
    blocks[2] = blocks[3]


def share_attention(model):
    first, second = towers(model)[0][0], towers(model)[0][3]
    name = "attn" if hasattr(first, "attn") else "self_attn"
    setattr(first, name, getattr(second, name))


def alias(model):
    part = attention(model)
    model.alias = part if hasattr(part, "in_proj_weight") else part.q_proj


def tie(model, data=False):
    one, other = attention(model, 0), attention(model, 3)
    one, other, name = (one, other, "in_proj_weight") if hasattr(one, "in_proj_weight") else (
        one.q_proj, other.q_proj, "weight")  # fmt: skip
    if data:
        getattr(one, name).data = getattr(other, name).data
    else:
        setattr(one, name, getattr(other, name))


class Hand(nn.Module):
    """A hand-written attention that reads the weight of q_proj and never calls it."""

    def __init__(self, original):
        super().__init__()
        self.num_heads = original.num_heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, getattr(original, name))

    def forward(self, hidden_states, attention_mask=None, **_):
        q = F.linear(hidden_states, self.q_proj.weight, self.q_proj.bias)
        k, v = self.k_proj(hidden_states), self.v_proj(hidden_states)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return self.out_proj(x.transpose(1, 2).flatten(2)), None


def by_hand(model):
    block = towers(model)[0][3]
    block.self_attn = Hand(block.self_attn)


def own_block(model):
    """As dense CLIPs do it: the last block's own forward reads the packed weight and never calls the attention."""

    def forward(self, x, **_):
        part, normed = self.attn, self.ln_1(x)
        value = F.linear(normed, part.in_proj_weight, part.in_proj_bias).chunk(3, dim=-1)[2]
        x = x + part.out_proj(value)
        return x + self.mlp(self.ln_2(x))

    block = towers(model)[0][3]
    block.forward = types.MethodType(forward, block)


STRANGE = {
    ("open_clip", "subclass"): (other_class(Shifted), "test_site.Shifted, whose forward is its own"),
    ("open_clip", "forward"): (other_forward, "whose forward was replaced on the instance"),
    ("open_clip", "parametrized"): (parametrized, r"attn\.in_proj_weight is computed from .*expected a parameter"),
    ("open_clip", "pruned"): (pruned, r"attn\.in_proj_weight is computed from .*in_proj_weight_orig"),
    ("open_clip", "lora"): (lora("attn"), r"attn is a peft\..*merge_and_unload"),
    ("open_clip", "lora out"): (lora("out_proj"), r"out_proj, found peft\..*merge_and_unload"),
    ("open_clip", "alias"): (alias, r"resblocks\.3\.attn is also held as alias"),
    ("open_clip", "block"): (own_block, r"image\.3\.q, image\.3\.v would never run: .*ResidualAttentionBlock"),
    ("hugging_face", "parametrized"): (parametrized, r"q_proj\.weight is computed from"),
    ("hugging_face", "pruned"): (pruned, r"q_proj\.weight is computed from"),
    ("hugging_face", "lora"): (lora("q_proj"), r"'q' looked for an nn\.Linear .*q_proj, found peft\."),
    ("hugging_face", "alias"): (alias, r"q_proj is also held as alias"),
    ("hugging_face", "hand"): (by_hand, r"image\.3\.q would never run: .*Hand"),
    **{(family, "blocks"): (share_blocks, r"layers\.3|resblocks\.3.* are one object") for family in MODELS},
    **{(family, "attention"): (share_attention, r"attn and .*attn are one object") for family in MODELS},
    **{(family, "tied"): (tie, r"is tied to .*\.0\..*weight, expected") for family in MODELS},
    **{(family, "tied data"): (lambda model: tie(model, data=True), r"is tied to .*\.0\.") for family in MODELS},
}


@pytest.mark.parametrize(("family", "name"), STRANGE)
def test_what_cannot_be_adapted_right_is_refused_and_stays_as_it_was(family, name):
    model, (change, message) = MODELS[family](), STRANGE[family, name]
    change(model)
    modules, weights = state(model)
    trainable, before = [p.requires_grad for p in model.parameters()], embeddings(model)
    with pytest.raises(ValueError, match=message):
        mora.patch(model)
    assert dict(model.named_modules()) == modules and not hasattr(model, "mora")
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(one, other) for one, other in zip(embeddings(model), before, strict=True))


def test_a_subclass_that_computes_the_same_is_adapted():
    model = open_clip_model()
    other_class(Named)(model)
    mora.verify(mora.patch(model))
    mora.unpatch(model)
    assert type(attention(model)) is Named


def test_blocks_that_are_not_adapted_may_be_anything():
    model = open_clip_model()
    attention(model, 0).__class__ = Shifted
    before = embeddings(model)
    mora.patch(model, init="identity")
    for name, one, other in zip(("image", "text"), embeddings(model), before, strict=True):
        assert_parity(name, one, other, TABLE)


def test_the_trial_run_is_seen_by_nobody():
    """A class of the user's own is tried: no hook fires, no random number is drawn, modes stay."""

    class Own(type(open_clip_model())):
        def encode_image(self, image, normalize=False):
            torch.rand(1)
            return super().encode_image(image, normalize)

    model, seen = open_clip_model(), []
    model.__class__ = Own
    attention(model).register_forward_hook(lambda *_: seen.append(1))
    model.train()
    drawn = []
    for kind in (Own, type(open_clip_model())):
        model.__class__ = kind
        torch.manual_seed(0)
        mora.patch(model)
        drawn.append(torch.rand(1))
        assert all(module.training for module in model.modules())
        mora.unpatch(model)
    assert torch.equal(*drawn) and not seen

    model.__class__ = Own
    Own.encode_text = lambda self, text: 1 / 0
    with pytest.warns(UserWarning, match=r"Own may not run .*ZeroDivisionError.*mora\.verify"):
        mora.patch(model)


@families
def test_hooks_on_attention_fire_while_patched_and_after(family):
    model, seen = MODELS[family](), []
    part = attention(model)
    handles = [
        part.register_forward_hook(lambda *_: seen.append("forward")),
        part.register_forward_hook(lambda *_: seen.append("kwargs"), with_kwargs=True),
        part.register_forward_pre_hook(lambda *_: seen.append("before")),
        part.register_full_backward_hook(lambda *_: seen.append("backward")),
    ]

    def fired():
        seen.clear()
        embed(model)[0].sum().backward()
        return sorted(seen)

    every = fired()
    assert every == ["backward", "before", "forward", "kwargs"]
    mora.patch(model, targets=("q", "k", "v", "out"))
    assert fired() == every
    with mora.disabled(model):
        seen.clear()
        embed(model)
        assert sorted(seen) == ["before", "forward", "kwargs"]
    handles.append(attention(model).register_forward_hook(lambda *_: seen.append("late")))
    handles.append(part.register_forward_hook(lambda *_: seen.append("old reference")))
    assert fired() == sorted([*every, "late", "old reference"])
    handles.pop(0).remove()
    assert fired() == sorted(["backward", "before", "kwargs", "late", "old reference"])
    copied = copy.deepcopy(model)
    mora.unpatch(copied)
    mora.unpatch(model)
    model.requires_grad_(True)
    assert attention(model) is part
    assert fired() == sorted(["backward", "before", "kwargs", "late", "old reference"])
    for handle in handles:
        handle.remove()
    assert fired() == []


def test_hooks_on_a_projection_fire_while_patched_and_after():
    model, seen = hugging_face_model(), []
    handle = attention(model).q_proj.register_forward_hook(lambda *_: seen.append(1))
    mora.patch(model)
    embed(model)
    attention(model).q_proj.register_forward_hook(lambda *_: seen.append(2))
    mora.unpatch(model)
    embed(model)
    handle.remove()
    embed(model)
    assert seen == [1, 1, 2, 2]


def test_a_grad_cam_sees_the_same_activations():
    """Activation and gradient at `attn`, as Grad-CAM collects them, of an identity start."""
    found = []
    for patched in (False, True):
        model, kept = open_clip_model(), {}
        part = attention(model)
        part.register_forward_hook(lambda module, args, output, kept=kept: kept.update(activation=output[0]))
        part.register_full_backward_hook(lambda module, inner, outer, kept=kept: kept.update(gradient=outer[0]))
        if patched:
            mora.patch(model, init="identity", dropout=0.0)
        embed(model)[0].square().sum().backward()
        found.append(kept)
    for name in ("activation", "gradient"):
        assert_parity(name, found[1][name].detach(), found[0][name].detach(), TABLE)


def test_what_users_keep_on_attention_is_there():
    model = open_clip_model()
    part = attention(model)
    part.note, part.head_dim_seen = "mine", part.head_dim
    part.register_buffer("seen", torch.ones(2))
    keys = set(model.state_dict())
    mora.patch(model)
    adapted = attention(model)
    assert (adapted.note, adapted.head_dim, adapted.dropout) == ("mine", part.head_dim, part.dropout)
    assert keys <= set(model.state_dict())
    model.to(torch.float64)
    mora.unpatch(model)
    assert part.seen.dtype == torch.float64


class Around(nn.Module):
    def __init__(self, clip):
        super().__init__()
        self.net = nn.ModuleDict({"clip": clip})


@families
def test_a_clip_inside_something_is_named(family):
    with pytest.raises(ValueError, match=r"got a Around, expected the CLIP itself: pass model\.net\.clip$"):
        mora.patch(Around(MODELS[family]()))
    for wrap, where in ((Forwarding, "inner"), (torch.compile, "_orig_mod")):
        clip = MODELS[family]()
        with pytest.raises(ValueError, match=rf"around the CLIP, expected the CLIP itself: patch model\.{where}, then"):
            mora.patch(wrap(clip))
        assert not hasattr(clip, "mora")
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = MODELS[family]()
    with pytest.raises(ValueError, match="patch before wrapping"):
        mora.patch(wrapped)


def test_a_peft_model_is_refused():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(hugging_face_model(), LoraConfig(target_modules=["fc1"], r=2))
    with pytest.raises(ValueError, match=r"got a PeftModel around the CLIP, .*patch model\.base_model\.model, then"):
        mora.patch(model)
