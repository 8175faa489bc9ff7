"""Which token is of which modality: read off a call's inputs, given by the user, remembered for checkpointing."""

import threading

import pytest
import torch

import mora
from mora.streams import Marked, Route, Routes, TextFirst
from mora.streams.route import MOST_SPANS, spans_of
from tests.mora.models import randomise
from tests.streams.models import IMAGE_TOKEN, inputs_of, llava, pixels, run, tokens, vilt

BOTH = ("image", "text")


def index(*rows):
    """ "t" is text, "i" an image."""
    return torch.tensor([["it".index(letter) for letter in row] for row in rows], dtype=torch.int8)


def test_runs_of_tokens_that_all_rows_share_are_spans():
    spans = spans_of(BOTH, index("tiit", "tiit"))
    assert spans == (("text", 1), ("image", 2), ("text", 1))
    assert spans_of(BOTH, index("ttt")) == (("text", 3),)
    assert spans_of(BOTH, index("tii", "tti")) is None
    assert spans_of(BOTH, index("ti" * MOST_SPANS)) is None
    assert spans_of(BOTH, index("ti").to("meta")) is None


def test_a_reader_says_of_which_modality_a_token_is():
    reader = Marked(((7, "image"), (8, "image"), (9, "audio")))
    assert reader.modalities == ("image", "audio", "text")
    route = reader.of_ids(torch.tensor([[1, 7, 8, 9], [9, 2, 7, 7]]))
    assert route.index.tolist() == [[2, 0, 0, 1], [1, 2, 0, 0]] and route.spans is None
    assert reader.read({"inputs_embeds": torch.zeros(1, 2, 3)}) is None
    assert TextFirst().read({"inputs_embeds": torch.zeros(1, 2, 3)}).spans == (("text", 2), ("image", -1))
    assert TextFirst().read({}) is None


def test_flat_tokens_take_the_same_way():
    route = Route.of_index(BOTH, index("tti", "tti"))
    x = torch.randn(2, 3, 4)

    def one(modality, tokens):
        return tokens * (2 if modality == "image" else 3)

    flat = route.apply(x.view(6, 4), one, None)
    assert torch.equal(flat.view(2, 3, 4), route.apply(x, one, None))
    with pytest.raises(ValueError, match=r"route: got x of shape \(2, 4, 4\) where .*adds or drops tokens"):
        route.apply(torch.randn(2, 4, 4), one, None)


@torch.no_grad()
def test_generate_goes_by_the_tokens_of_every_step():
    """With a cache later steps are one token of text each; without it all tokens come again."""
    model = randomise(mora.patch(llava(), targets=("q", "k", "v", "out"), alpha=0.1))
    given, _ = inputs_of("llava")
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    cached = model.generate(**given, **options)
    whole = model.generate(**given, **options, use_cache=False)
    assert torch.equal(cached.sequences, whole.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(whole.logits), rtol=1e-4, atol=1e-4)
    with mora.keeping(model):
        assert torch.equal(model.generate(**given, **options).sequences, cached.sequences)
    embedded = model.get_input_embeddings()(given["input_ids"])
    features = torch.cat(list(model.get_image_features(given["pixel_values"]).pooler_output))
    embedded[given["input_ids"] == IMAGE_TOKEN] = features
    with mora.route(model, given["input_ids"]):
        by_embeddings = model.generate(inputs_embeds=embedded, attention_mask=given["attention_mask"], **options)
    assert torch.equal(by_embeddings.sequences, cached.sequences[:, given["input_ids"].shape[1] :])


def test_embeddings_without_ids_need_a_route():
    model, (given, _) = mora.patch(llava()), inputs_of("llava")
    embedded = model.get_input_embeddings()(given["input_ids"]).detach()
    with pytest.raises(ValueError, match=r"input_ids: got None, .*mora.route\(model, ids\)"):
        model(inputs_embeds=embedded)
    with pytest.raises(RuntimeError, match="mora.route: got a call of a block of a single-stream model by itself"):
        model.model.language_model(inputs_embeds=embedded)
    with mora.route(model, given["input_ids"]) as same:
        assert same is model
        outside = model.model.language_model(inputs_embeds=embedded).last_hidden_state
        model(inputs_embeds=embedded)
        inside = model.model(given["input_ids"]).last_hidden_state
    torch.testing.assert_close(outside, inside)
    with pytest.raises(ValueError, match="input_ids: got None"):
        model(inputs_embeds=embedded)
    with mora.disabled(model):
        model.model.language_model(inputs_embeds=embedded)
    with pytest.raises(TypeError, match=r"ids: got .*float32 \(2, 11, 32\), expected"), mora.route(model, embedded):
        pass
    with pytest.raises(ValueError, match="without a routed projection"), mora.route(llava(), given["input_ids"]):
        pass


def test_a_failed_call_leaves_no_route_behind():
    model = mora.patch(llava())
    with pytest.raises(Exception, match="Image features and image tokens do not match"):
        model(input_ids=tokens((None, None)), pixel_values=pixels())
    routes = next(module.routes for module in model.modules() if hasattr(module, "routes"))
    assert isinstance(routes, Routes) and routes.calls == []


@torch.no_grad()
def test_threads_have_routes_of_their_own():
    model = randomise(mora.patch(llava().double()))
    given = [inputs_of("llava", places)[0] for places in ((1, 4), (None, None))]
    expected, found = [run(model, one) for one in given], {}

    def compute(number):
        with torch.no_grad():
            found[number] = [run(model, given[number]) for _ in range(5)]

    threads = [threading.Thread(target=compute, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, outputs in found.items():
        for output in outputs:
            torch.testing.assert_close(output, expected[number])


def gradients(model, given):
    model.zero_grad(set_to_none=True)
    run(model, given).square().mean().backward()
    return {name: parameter.grad for name, parameter in mora.adapter_parameters(model)}


def test_text_alone_trains_what_text_goes_through():
    """No image in the batch: the image's own factors have no gradient, its common factor has one through the Gram."""
    model = randomise(mora.patch(llava(), dropout=0.0)).train()
    found = gradients(model, inputs_of("llava", (None, None))[0])
    without = {name for name, gradient in found.items() if gradient is None}
    assert without == {name for name in found if name.startswith("image.") or name.endswith(".image_16")}
    assert found["common.0.image"].abs().sum() > 0


@torch.no_grad()
def test_rows_do_not_see_what_the_others_lack():
    """A row without an image, one with, in one batch: each as alone."""
    model = randomise(mora.patch(llava().double()))
    mixed = run(model, inputs_of("llava", (1, None, 4))[0])
    ids = inputs_of("llava", (1, None, 4))[0]["input_ids"]
    alone = run(model, {"input_ids": ids[1:2]})
    torch.testing.assert_close(mixed[1:2], alone)
    first = run(model, {"input_ids": ids[:1], "pixel_values": pixels(2)[:1]})
    torch.testing.assert_close(mixed[:1], first)


@pytest.mark.parametrize(("make", "name"), [(vilt, "vilt"), (llava, "llava")])
def test_activation_checkpointing_finds_the_route_again(make, name):
    model = randomise(mora.patch(make().double(), dropout=0.0)).train()
    given, _ = inputs_of(name)
    expected = gradients(model, given)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for _ in range(2):
        for key, gradient in gradients(model, given).items():
            torch.testing.assert_close(gradient, expected[key])
    if name == "llava":
        other, _ = inputs_of(name, (2, 2))
        with torch.no_grad():
            run(model, other)
        loss = run(model, given).mean() + run(model, other).mean()
        with pytest.raises(RuntimeError, match="after 2 forward calls with different routes"):
            loss.backward()
