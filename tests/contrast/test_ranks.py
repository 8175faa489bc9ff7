"""Ranks by hand, torchmetrics' recall, ties that find nothing, several captions of one picture."""

import pytest
import torch

from mora.contrast.ranks import figures_of, first_of_each, ranks, retrieval


def turned(*degrees):
    """Directions in the plane."""
    angles = torch.tensor(degrees, dtype=torch.float32).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def everything(count):
    return torch.ones(count, dtype=torch.bool)


def test_ranks_by_hand():
    """Images at 0, 10, 90 degrees; their texts at 8, 80, 70: from image 0 the texts stand 8, 70, 80 degrees away."""
    embedded = {"image": turned(0, 10, 90), "text": 3 * turned(8, 80, 70)}
    present = {"image": everything(3), "text": everything(3)}
    to_text, to_image = retrieval(embedded, present)
    assert (to_text.query, to_text.target, to_text.queries, to_text.candidates) == ("image", "text", 3, 3)
    # image 1 (10): texts at 2, 70, 60 -> its own (80) is last; image 2 (90): 82, 10, 20 -> its own is second
    assert to_text.recall == {1: pytest.approx(1 / 3), 5: 1.0, 10: 1.0} and to_text.median_rank == 2.0
    # text 0 (8): images at 8, 2, 82 -> second; text 1 (80): 80, 70, 10 -> second; text 2 (70): 70, 60, 20 -> first
    assert to_image.recall[1] == pytest.approx(1 / 3) and to_image.median_rank == 2.0
    figures = figures_of([to_text, to_image])
    assert figures["recall_at_1"] == pytest.approx(1 / 3) and figures["image_to_text_median_rank"] == 2.0
    assert [*figures][:3] == ["recall_at_1", "recall_at_5", "recall_at_10"] and len(figures) == 11


def test_what_is_missing_asks_and_answers_nothing():
    """Without the text of row 0 its image has no match, and is still an answer to the others."""
    embedded = {"image": turned(0, 10, 90), "text": turned(8, 5, 70)}
    present = {"image": everything(3), "text": torch.tensor([False, True, True])}
    broken = {**embedded, "text": embedded["text"].masked_fill(~present["text"][:, None], torch.nan)}
    to_text, to_image = retrieval(broken, present)
    assert (to_text.queries, to_text.candidates, to_image.queries, to_image.candidates) == (2, 2, 2, 3)
    assert to_text.recall[1] == 1.0
    assert to_image.median_rank == 1.5  # text 1 (5 degrees) has image 0 as near as image 1: a tie; text 2 finds its own
    with pytest.raises(ValueError, match="text: got embeddings with NaN"):
        retrieval(broken, {"image": everything(3), "text": everything(3)})
    with pytest.raises(ValueError, match="got no sample that has two of image, text"):
        retrieval(embedded, {"image": present["text"], "text": ~present["text"]})


def test_ties_count_against_the_model():
    same = {"image": torch.ones(20, 4), "text": torch.ones(20, 4)}
    for one in retrieval(same, {"image": everything(20), "text": everything(20)}):
        assert one.recall == {1: 0.0, 5: 0.0, 10: 0.0} and one.median_rank == 20.0


def test_one_picture_of_several_captions_counts_once():
    """Picture 0 has three captions, of which the last is its own best; each caption looks for the picture."""
    embedded = {"image": turned(0, 0, 0, 90), "text": turned(60, 80, 2, 50)}
    pictures = torch.tensor([0, 0, 0, 1])
    to_text, to_image = retrieval(embedded, {"image": everything(4), "text": everything(4)}, pictures)
    assert (to_text.queries, to_text.candidates, to_image.queries, to_image.candidates) == (2, 4, 4, 2)
    # from 90 degrees the texts stand 30, 10, 88, 40 away: its own is third; captions of one picture are no rivals
    assert to_text.recall == {1: 0.5, 5: 1.0, 10: 1.0} and to_text.median_rank == 2.0
    assert to_image.recall[1] == 0.5 and to_image.median_rank == 1.5


def test_recall_is_that_of_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.retrieval")
    torch.manual_seed(0)
    count, pictures = 40, torch.arange(40) // 2
    image, text = torch.randn(20, 6)[pictures], torch.randn(40, 6)
    text += image
    to_text, to_image = retrieval(
        {"image": image, "text": text}, {"image": everything(40), "text": everything(40)}, pictures
    )
    cosines = torch.nn.functional.normalize(text, dim=1) @ torch.nn.functional.normalize(image[::2], dim=1).T
    match = pictures[:, None] == torch.arange(20)
    for_text, for_image = torch.arange(count)[:, None].expand(-1, 20), torch.arange(20)[:, None].expand(-1, count)
    for depth in (1, 5, 10):
        found = metrics.RetrievalRecall(top_k=depth)(cosines.flatten(), match.flatten(), for_text.flatten())
        assert to_image.recall[depth] == pytest.approx(float(found))
        # of several right answers one is enough: torchmetrics calls that the hit rate
        found = metrics.RetrievalHitRate(top_k=depth)(cosines.T.flatten(), match.T.flatten(), for_image.flatten())
        assert to_text.recall[depth] == pytest.approx(float(found))


def test_a_gallery_in_parts_gives_the_same_ranks(monkeypatch):
    torch.manual_seed(0)
    given = torch.randn(30, 4), torch.arange(30), torch.randn(25, 4), torch.arange(25)
    whole = ranks(*given)
    assert len(whole) == 25
    monkeypatch.setattr("mora.contrast.ranks.CHUNK", 60)
    assert torch.equal(ranks(*given), whole)


def test_first_of_each():
    assert first_of_each(torch.tensor([5, 2, 5, 2, 9])).tolist() == [0, 1, 4]
    assert first_of_each(torch.tensor([], dtype=torch.int64)).tolist() == []
