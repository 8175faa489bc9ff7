"""With nothing missing the losses are open_clip's, value and gradients; what is missing has no part in them."""

import math

import pytest
import torch
import torch.nn.functional as F

from mora.contrast.loss import contrastive_loss, count_pairs

ROWS, WIDTH, SCALE, BIAS = 7, 5, 12.0, -3.0


def drawn(rows=ROWS, names=("image", "text"), seed=0):
    torch.manual_seed(seed)
    return {name: torch.randn(rows, WIDTH, dtype=torch.float32, requires_grad=True) for name in names}


def directions(embedded):
    return {name: F.normalize(rows, dim=-1) for name, rows in embedded.items()}


def mask(*rows, count=ROWS):
    there = torch.ones(count, dtype=torch.bool)
    there[list(rows)] = False
    return there


def gradients(loss, embedded):
    return torch.autograd.grad(loss, [*embedded.values()])


@pytest.mark.parametrize("kind", ["ClipLoss", "SigLipLoss"])
def test_it_is_that_of_open_clip_when_nothing_is_missing(kind):
    loss = pytest.importorskip("open_clip.loss")
    bias = BIAS if kind == "SigLipLoss" else None
    embedded, present = drawn(), {"image": mask(), "text": mask()}
    ours = contrastive_loss(directions(embedded), present, SCALE, bias) / count_pairs(present)
    given = [*directions(embedded).values(), torch.tensor(SCALE)]
    theirs = getattr(loss, kind)()(*given) if bias is None else getattr(loss, kind)()(*given, torch.tensor(bias))
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(gradients(ours, embedded), gradients(theirs, embedded), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def by_hand(x, y, has_x, has_y, pictures):
    """CLIP's loss pair by pair."""
    total, x, y = 0.0, x.detach(), y.detach()
    for one, other, has_one, has_other in ((x, y, has_x, has_y), (y, x, has_y, has_x)):
        for i in (has_one & has_other).nonzero().flatten().tolist():
            near = [j for j in has_other.nonzero().flatten().tolist() if j == i or pictures[j] != pictures[i]]
            cosines = [SCALE * float(one[i] @ other[j]) for j in near]
            total += 0.5 * (math.log(sum(map(math.exp, cosines))) - SCALE * float(one[i] @ other[i]))
    return total


def test_what_is_present_of_incomplete_rows_is_a_negative_and_no_pair():
    embedded, pictures = drawn(), torch.tensor([0, 1, 2, 3, 4, 1, 6])
    present = {"image": mask(0, 3), "text": mask(2)}
    found = directions(embedded)
    ours = contrastive_loss(found, present, SCALE, pictures=pictures)
    expected = by_hand(found["image"], found["text"], present["image"], present["text"], pictures.tolist())
    assert float(ours.detach()) == pytest.approx(expected, rel=1e-5)
    assert count_pairs(present) == 4
    image, text = gradients(ours, embedded)
    assert [bool(row.any()) for row in image] == present["image"].tolist()
    assert [bool(row.any()) for row in text] == present["text"].tolist()


@pytest.mark.parametrize("bias", [None, BIAS])
def test_rows_that_are_not_there_are_not_looked_at(bias):
    present = {"image": mask(0, 3), "text": mask(2)}
    found = {name: rows.detach() for name, rows in directions(drawn()).items()}
    broken = {name: rows.masked_fill(~present[name][:, None], math.nan) for name, rows in found.items()}
    embedded = {name: rows.clone().requires_grad_() for name, rows in found.items()}
    ours = contrastive_loss(embedded, present, SCALE, bias)
    assert torch.isfinite(ours) and all(torch.isfinite(one).all() for one in gradients(ours, embedded))
    finite = {name: torch.where(present[name][:, None], rows, 7.0) for name, rows in broken.items()}
    torch.testing.assert_close(contrastive_loss(finite, present, SCALE, bias), ours)


def test_the_sigmoid_loss_counts_what_both_sides_have():
    embedded, present = directions(drawn()), {"image": mask(0), "text": mask(2)}
    x, y = embedded["image"], embedded["text"]
    expected = sum(
        -F.logsigmoid((1 if i == j else -1) * (SCALE * x[i] @ y[j] + BIAS))
        for i in range(ROWS)
        for j in range(ROWS)
        if i != 0 and j != 2
    )
    torch.testing.assert_close(contrastive_loss(embedded, present, SCALE, BIAS), expected)


@pytest.mark.parametrize("absent", [(0, 1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6)])
def test_batches_of_no_pair_or_of_one_alone_have_a_loss_of_zero(absent):
    """One pair without any other text or image is told from nothing."""
    embedded = drawn()
    loss = contrastive_loss(directions(embedded), {"image": mask(*absent), "text": mask(*absent)}, SCALE)
    assert float(loss) == 0
    assert all(torch.equal(one, torch.zeros_like(one)) for one in gradients(loss, embedded))


def test_three_modalities_are_the_sum_over_their_pairs():
    embedded = directions(drawn(names=("audio", "image", "text")))
    present = {"audio": mask(1), "image": mask(2), "text": mask()}
    pairs = [("audio", "image"), ("audio", "text"), ("image", "text")]
    parts = [contrastive_loss({n: embedded[n] for n in pair}, {n: present[n] for n in pair}, SCALE) for pair in pairs]
    torch.testing.assert_close(contrastive_loss(embedded, present, SCALE), sum(parts))
    assert count_pairs(present) == 5 + 6 + 6
