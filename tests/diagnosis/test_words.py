"""Every sentence on either side of its threshold; the table; the picture; JSON."""

import json
from dataclasses import replace

import pytest
from PIL import Image

import mora.diagnosis.words as words
from mora.diagnosis import Behaviour, Diagnosis
from mora.diagnosis.figures import Drift, Gram, Head, History, Pairing, Projection, ZeroShot


def projection(name="image.11.v", **figures):
    given = dict(start_move=1.0, learned_move=1.0, total_move=1.4, common_new=1.0, specific_new=0.5, start_new=0.9,
                 common_moved=1.0, common_strength=9.0, common_negative=0.0, specific_negative=0.0,
                 effective_rank=40.0, learned_rank=50.0)  # fmt: skip
    return Projection(name, name.split(".")[0], (768, 3072), **{**given, **figures})


HISTORY = History(
    "accuracy", 7, 8, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.61, 0.61), (3.0, 2.0, 1.0, 1, 1, 1, 0.9, 0.8), 0.01
)
GRAM = Gram("image.11", "image", (9.0, 4.0), (8.0, 5.0), 0.2)
PAIR = Pairing(("image", "text"), 64, 0.4, 0.3, 0.2, 0.1)


def diagnosis(history=HISTORY, identity=False, unseen=None, behaviour=None, **figures):
    seen = Behaviour() if behaviour is None else behaviour
    return Diagnosis("mora", identity, (projection(**figures),), (GRAM,), seen, history, unseen)


def said(found, begins):
    return [line for line in found.words() if line.startswith(begins)]


def test_moves():
    assert said(diagnosis(learned_move=words.HARDLY), "adapters moved well (0.45 of the weights' norm, 1 projection)")
    low = diagnosis(learned_move=0.29)
    assert said(low, "adapters hardly moved (0.29 of the weights' norm, 1 projection): raise the learning rate (0.01)")
    assert said(diagnosis(learned_move=words.FAR + 0.1), "adapters moved far (2.3 of") and len(low.words()) == 2
    assert said(diagnosis(learned_move=None), "the learned move is not known, as nobody kept the adapters' start")


def test_the_common_update_and_the_specific_term():
    assert said(diagnosis(common_moved=0.09), "the common update is still its random start (moved by 0.09")
    assert not said(diagnosis(common_moved=0.11), "the common update")
    assert not said(diagnosis(common_moved=0.09, common_new=0.01), "the common update")
    assert said(diagnosis(specific_new=0.04), "the specific terms only rescale columns")
    assert not said(diagnosis(specific_new=0.06), "the specific") and not said(diagnosis(specific_new=None), "the spec")


def test_magnitudes_below_0():
    assert said(diagnosis(specific_negative=0.3), "30 % of the specific magnitudes are below 0")
    assert said(diagnosis(common_negative=0.3), "30 % of the common") and not said(diagnosis(common_negative=0.1), "10")
    assert not said(diagnosis(identity=True, common_negative=0.5), "50 %"), "they begin at 0"


def test_epochs():
    def run(**fields):
        return said(diagnosis(replace(HISTORY, **fields)), "best epoch")[0]

    assert run() == "best epoch 7 of 8"
    assert run(best_epoch=2).startswith("best epoch 2 of 8: later ones learned training rows alone")
    assert run(best_epoch=2, losses=(3, 1, 2, 2, 1, 1, 1, 1)).startswith("best epoch 2 of 8: later ones helped nowhere")
    gaining = run(best_epoch=8, validation=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.61, 0.65))
    assert gaining == "best epoch 8 of 8: the last ones still gained 5.0 points; train longer"
    assert run(best_epoch=1, epochs=3, validation=(0.1,) * 3) == "best epoch 1 of 3", "too few to say more"
    assert run(validation=(0.1, 0.2), losses=(2, 1), best_epoch=2) == "best epoch 2 of 8; 2 were run"


def test_losses():
    rising = diagnosis(replace(HISTORY, losses=(2.0, 3.1, 4.0, 1, 1, 1, 1, 1)))
    assert rising.words()[0] == "the training loss rose from 2 to 4: lower the learning rate (0.01)"
    assert not said(diagnosis(replace(HISTORY, losses=(2.0, 2.9, 1, 1, 1, 1, 1, 1))), "the training loss")
    late = diagnosis(replace(HISTORY, losses=(9.0, 1.0, 5.0, 1, 1, 1, 1, 1)))
    assert said(late, "the training loss rose from 1 to 5")


def test_pairs_zero_shot_and_heads():
    def seen(**parts):
        return diagnosis(behaviour=Behaviour(**parts))

    assert not said(seen(pairings=(PAIR,)), "a row's")
    lost = replace(PAIR, after=0.15)
    assert said(seen(pairings=(lost,)), "a row's image and text stand out from other rows' by 0.05 in cosine, 0.20")
    assert said(seen(zero_shot=ZeroShot(400, 9, 0.5, 0.4)), "zero-shot accuracy fell from 50 to 40 % of 400 rows")
    assert said(seen(zero_shot=ZeroShot(400, 9, 0.5, 0.6)), "zero-shot accuracy rose from 50 to 60 %")
    assert not said(seen(zero_shot=ZeroShot(40, 9, 0.5, 0.4)), "zero-shot"), "within its noise"
    loud = (Head("image", 1.0, 0.5), Head("text", 2.0, 6.0))
    assert said(seen(heads=loud), "text moves the head's logits by 6, image by 0.5: the answer hangs on text")
    assert not said(seen(heads=(loud[0], Head("text", 2.0, 3.0))), "text") and not said(seen(heads=loud[:1]), "image")


def test_what_was_not_seen_is_said_and_an_empty_diagnosis_says_so():
    assert diagnosis(unseen="no such file").words()[-1] == "embeddings were not looked at: no such file"
    empty = Diagnosis("linear", False, (), (), Behaviour())
    assert empty.words() == ("nothing stands out",) and str(empty) == "- nothing stands out" and empty.table() == ""


FULL = Behaviour(
    (Drift("image", 12000, 0.91234, 0.3), Drift("a_modality_with_a_name_longer_than_any", 12000, -0.9, 1234567.0)),
    (PAIR,), ZeroShot(64, 9, 0.5, 0.4), (Head("image", 12345.6, 0.5), Head("text", 2.0, None)),
)  # fmt: skip


def test_the_table_fits_80_columns():
    many = [projection(f"{name}.{layer}.fc1", learned_move=10.0**layer, effective_rank=1234.5, common_negative=1.0)
            for name in ("image", "a_modality_with_a_name_longer_than_any") for layer in range(5)]  # fmt: skip
    found = replace(diagnosis(behaviour=FULL), projections=(*many, projection("text\x1b[31m.3.v", common_new=None)))
    lines = found.table().splitlines()
    assert max(map(len, lines)) <= 80 and "\x1b" not in found.table()
    row = next(line for line in lines if line.startswith("image.1.fc1"))
    assert row.split() == ["image.1.fc1", "768x3072", "1.00", "10.00", "1.00", "0.50", "100/0", "%", "50.0"]
    assert str(found).endswith("\n".join(f"- {line}" for line in found.words()))


@pytest.mark.parametrize("found", [
    diagnosis(behaviour=FULL),
    diagnosis(history=None, learned_move=None, start_move=None, start_new=None),
    Diagnosis("linear", False, (), (), Behaviour()),
])  # fmt: skip
def test_the_picture(found, tmp_path):
    path = found.plot(tmp_path / "picture.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size[0] > 500


def test_json():
    found = diagnosis(learned_move=float("inf"), behaviour=FULL).as_dict()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["projections"][0]["learned_move"] is None and again["words"] and again["history"]["best_epoch"] == 7
