"""How many rows each tower encodes where rows are missing: counted at its first operation, not timed."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import mora
from mora.data.missing import IMAGE_MISSING, TEXT_MISSING, missing_table
from tests.savings.worlds import classifier, images, short_texts

ROWS, RATE = 20, 0.7  # 70 % of 20 is a whole number: 7 rows without image, 7 without text
# A convolution is seen whole in inference mode, and as what it is made of elsewhere.
CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.convolution.default)
EMBEDDING = torch.ops.aten.embedding.default
CLIPS = ("open_clip", "hugging_face")


class Encoded(TorchDispatchMode):
    """Counts the images that are cut into patches, and the texts whose tokens are looked up."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = vocabulary
        self.rows = {"image": 0, "text": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in CONVOLUTIONS:
            self.rows["image"] += len(args[0])
        elif func is EMBEDDING and len(args[0]) == self.vocabulary:  # not positions
            self.rows["text"] += len(args[1])
        return func(*args, **(kwargs or {}))


def batch():
    table = missing_table(ROWS, RATE, "both", seed=0)
    return images(ROWS), short_texts(ROWS), table != IMAGE_MISSING, table != TEXT_MISSING


def counted(model, given):
    """Rows encoded by a call after the first, which finds out where the towers can be cut."""
    vocabulary, _ = model.towers["text"].vocabulary(model.model)
    with torch.inference_mode():
        model(*given)
        with Encoded(vocabulary) as seen:
            model(*given)
    return seen.rows


@pytest.mark.parametrize("family", CLIPS)
@pytest.mark.parametrize("merged", [False, True], ids=["patched", "merged"])
def test_in_eval_only_rows_that_are_there_are_encoded(family, merged):
    model, given = classifier(family).eval(), batch()
    if merged:
        mora.merge(model.model)
    there = {"image": int(given[2].sum()), "text": int(given[3].sum())}
    assert there == {"image": 13, "text": 13}
    # Without `keeping`: the image's substitute is known by a checksum, the text's is one short row more.
    assert counted(model, given) == {"image": 13, "text": 14}
    with mora.keeping(model):
        assert counted(model, given) == there
    assert counted(model.train(), given) == {"image": 13, "text": 14}
    model.save(mora.Savings.none())
    assert counted(model.eval(), given) == {"image": ROWS, "text": ROWS}


@pytest.mark.parametrize("family", CLIPS)
def test_a_batch_that_lacks_70_percent_takes_at_most_two_thirds_of_the_products(family):
    given, products = batch(), {}
    for savings, kept in ((mora.Savings.none(), False), (mora.Savings.parse("missing"), True), (None, True)):
        model = classifier(family, savings).eval()
        with torch.inference_mode(), mora.keeping(model) if kept else nullcontext():
            model(*given)
            with FlopCounterMode(display=False) as counter:
                model(*given)
        products[str(model.savings)] = counter.get_total_flops()
    assert products["missing"] <= 0.66 * products["none"]
    assert products["all"] < products["missing"]
