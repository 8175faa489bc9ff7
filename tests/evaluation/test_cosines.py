"""Retrieval and class names without a head, before and after; embeddings as files; models of every kind."""

import json
import math

import pytest
import torch

import mora
from mora.cli import main
from mora.contrast.ranks import Direction
from mora.data import Missing
from mora.evaluation.cosines.models import before, open_model, plain
from mora.evaluation.cosines.report import Comparison, as_csv, markdown
from mora.evaluation.cosines.retrieval import Retrieved, evaluate_retrieval
from mora.evaluation.cosines.rows import embed_rows
from mora.evaluation.cosines.zero_shot import evaluate_zero_shot, name_embeddings
from mora.evaluation.predict import predict
from mora.export import merge_run
from mora.runs.backbone import load_backbone
from mora.system.files import read_tensors
from mora.training import load_run
from tests.evaluation.fakes import WORDS, InMemory

pytest.importorskip("torchmetrics")
EMOJI = dict(limit=24, device="cpu", epochs=1, batch=8, last_layers=1, missing="both:0.3", cache="off", log_every=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on pairs of a manifest without labels, one text and one image of which are missing by nature."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("pairs")
    lines = ["image,text,split"]
    for number in range(18):
        name = f"{number // 2}.png"
        image.new("RGB", (16, 16), (14 * number, 255 - 14 * number, 90)).save(folder / name)
        text = f"number {number}" if number != 13 else ""
        lines.append(f"{name if number != 14 else ''},{text},{('train', 'validation', 'test')[number // 6]}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    fields = {**EMOJI, "limit": None, "missing": "none", "objective": "contrastive"}
    mora.train(folder / "pairs.csv", folder / "run", **fields)
    return folder / "run"


def test_what_has_no_head_is_refused_by_name_where_one_is_needed(run, tmp_path, capsys):
    assert main(["evaluate", "--model", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "trained on pairs (--objective contrastive) and has no classes" in capsys.readouterr().err
    with pytest.raises(ValueError, match="trained on pairs and has no classes"):
        predict(load_run(run), text="a text")


def test_before_is_the_backbone_and_after_is_the_run(run):
    loaded, dataset = load_run(run), InMemory(4)
    after, untouched = embed_rows(loaded, dataset), embed_rows(plain(load_backbone("tiny")), dataset)
    with before(loaded) as same:
        found = embed_rows(same, dataset)
    for modality, rows in untouched.rows.items():
        torch.testing.assert_close(found.rows[modality], rows)
        assert not torch.allclose(after.rows[modality], rows, atol=1e-3)
        torch.testing.assert_close(embed_rows(loaded, dataset).rows[modality], after.rows[modality])


def test_retrieval_from_the_command_line(run, tmp_path, capsys):
    """Pictures with several captions: 3 of the test part, of which one row lacks its text and another its image."""
    out = tmp_path / "out"
    assert main(["evaluate", "--retrieval", "--model", str(run), "--out", str(out), "--missing", "text:0.4"]) == 0
    shown = capsys.readouterr().out
    assert "median rank" in shown and "text 40 %" in shown and "Written" in shown
    found = json.loads((out / "results.json").read_text())
    assert found["kind"] == "retrieval" and len(found["cells"]) == 2 * (1 + 3) * 2
    first, second, *_ = found["cells"]
    assert (first["state"], first["query"], first["queries"], first["candidates"]) == ("pretrained", "image", 3, 5)
    assert (second["query"], second["queries"], second["candidates"]) == ("text", 4, 3)
    assert (first["rows"], first["pairs"], first["kind"]) == (6, 4, "none")
    assert {cell["state"] for cell in found["cells"]} == {"pretrained", "adapted"}
    header, *lines = (out / "results.csv").read_text().splitlines()
    assert header.startswith("model,state,kind,rate,seed,table,rows,pairs,query,target,queries") and len(lines) == 16
    text = (out / "report.md").read_text()
    assert "| text 40 % |" in text and "| image to text |" in text and "Ties count against" in text


def test_a_result_says_how_many_asked():
    data = InMemory(12, natural=[0, 1, 2, *[0] * 9])
    whole, taken = evaluate_retrieval(plain(load_backbone("tiny")), data, [Missing(), Missing.parse("image:0.5")])
    assert whole.pairs == 10 > taken.pairs > 0 and taken.seed == 0 and whole.seed is None
    assert whole.directions[0].candidates == 11  # the text of the row without an image is an answer to be told apart
    assert 0 <= whole.figures["recall_at_1"] <= whole.figures["recall_at_10"] <= 1


def test_zero_shot_is_the_nearest_name(tmp_path):
    """By hand: cosines of images to the mean of two prompts; texts that name their class are told by it."""
    model, data = plain(load_backbone("tiny")), InMemory(12, natural=[0, 1, 2, *[0] * 9])
    templates = ("a photo of a {}", "{}")
    image, text, both = evaluate_zero_shot(model, data, templates=templates)
    assert [one.modality for one in (image, text, both)] == ["image", "text", "all"]
    assert [one.rows for one in (image, text, both)] == [11, 11, 12]
    clip = model.model.clip
    with torch.no_grad():
        parts = [clip.encode_text(model.tokenize([t.format(w) for w in WORDS]), normalize=True) for t in templates]
        classes = torch.nn.functional.normalize(sum(parts) / 2, dim=-1)
        torch.testing.assert_close(name_embeddings(model, WORDS, templates), classes)
        rows = [n for n in range(12) if n != 2]
        images = torch.stack([model.preprocess(data[n].image) for n in rows])
        right = (clip.encode_image(images) @ classes.T).argmax(dim=1) == data.labels()[rows]
    assert image.accuracy == pytest.approx(float(right.float().mean()))
    assert text.accuracy > 0.5
    named = evaluate_zero_shot(model, data, names=[*reversed(WORDS)])
    assert named[1].accuracy < 0.5


def test_zero_shot_says_what_it_cannot_do():
    model = plain(load_backbone("tiny"))
    with pytest.raises(ValueError, match="squares has several labels per row"):
        evaluate_zero_shot(model, InMemory(metric="macro_f1"))
    with pytest.raises(ValueError, match="templates: got"):
        evaluate_zero_shot(model, InMemory(), templates=["a photo"])
    with pytest.raises(ValueError, match="class-names: got 1, expected one for each of the 4"):
        evaluate_zero_shot(model, InMemory(), names=["apple"])


def test_zero_shot_from_the_command_line(run, tmp_path, capsys):
    data = tmp_path / "named.csv"
    data.write_text("text,label,split\n" + "".join(f"{word} {word},{word},test\n" for word in WORDS))
    out, command = tmp_path / "out", ["evaluate", "--zero-shot", "--model", str(run), "--data", str(data)]
    assert main([*command, "--out", str(out), "--templates", "an emoji of {}"]) == 0
    found = json.loads((out / "results.json").read_text())
    assert [(c["state"], c["modality"]) for c in found["cells"]] == [
        (state, modality) for state in ("pretrained", "adapted") for modality in ("text", "all")
    ]
    assert "Prompts: `an emoji of {}`" in (out / "report.md").read_text()
    capsys.readouterr()
    for wrong, message in (
        (["--retrieval"], "got both"),
        (["--missing", "text:0.5"], "missing: got it with --zero-shot"),
    ):
        assert main([*command, "--out", str(out), *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", "--model", str(run), "--out", str(out), "--templates", "{}"]) == 2
    assert "templates: got ['{}'] without --zero-shot" in capsys.readouterr().err


def test_embeddings_as_a_table(run, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "deep" / "test.parquet"
    assert main(["embed", "--model", str(run), "--out", str(out)]) == 0
    assert "Written" in capsys.readouterr().out
    table = parquet.read_table(out)
    assert table.column_names == ["id", "image", "text", "image_present", "text_present"]  # there are no labels
    rows = table.to_pylist()
    assert [row["text_present"] for row in rows] == [True, False, True, True, True, True]
    assert [row["image"] is None for row in rows] == [not row["image_present"] for row in rows]
    assert rows[1]["text"] is None and rows[2]["image"] is None and rows[0]["id"] == "row 13: 6.png"
    assert math.fsum(value * value for value in rows[0]["text"]) == pytest.approx(1, abs=1e-5)
    about = json.loads(table.schema.metadata[b"mora"])
    assert about["normalized"] is True and about["split"] == "test" and about["method"] == "mora"
    loaded, kind = load_run(run), table.schema.field("image").type
    assert (kind.list_size, str(kind.value_type)) == (loaded.model.towers["image"].width(loaded.model.clip), "float")
    with torch.no_grad():
        expected = loaded.model.clip.encode_text(loaded.tokenize(["number 12"]), normalize=True)[0]
    torch.testing.assert_close(torch.tensor(rows[0]["text"]), expected)


def test_arrays_have_nan_or_the_substitute_for_what_is_missing(tmp_path):
    numpy = pytest.importorskip("numpy")
    data = InMemory(5, natural=[0, 1, 2, 0, 0])
    path = mora.embed(None, data, tmp_path / "one.npz", backbone="tiny", normalize=False, absent="substitute")
    with numpy.load(path, allow_pickle=False) as found:
        whole = {name: torch.tensor(found[name]) for name in ("image", "text", "text_present", "label")}
        assert found["classes"].tolist() == [*WORDS] and found["id"].tolist()[1] == "row-1"
    model = plain(load_backbone("tiny"))
    torch.testing.assert_close(whole["image"][2], model.model.embedded_substitute("image")[0])
    assert whole["text_present"].tolist() == [True, False, True, True, True]
    tensors, _ = read_tensors(mora.embed(model, data, tmp_path / "two.safetensors", normalize=False))
    assert tensors["text"][1].isnan().all() and torch.equal(tensors["label"], whole["label"])
    there = tensors["text_present"]
    torch.testing.assert_close(tensors["text"][there], whole["text"][there])


def test_what_embed_refuses(run, tmp_path):
    for fields, message in (
        (dict(model=run, out="one.csv"), "out: got one.csv, expected a file that ends in .parquet"),
        (dict(model=run, out="one.npz", absent="zero"), "absent: got 'zero'"),
        (dict(model=None, out="one.npz"), "model, backbone: got none"),
        (dict(model=run, out="one.npz", backbone="tiny"), "model, backbone: got both"),
        (dict(model=run, out="one.npz", pretrained="openai"), "pretrained: got 'openai' with a folder"),
        (dict(model=None, out="one.npz", backbone="tiny"), "data: got none with tiny"),
    ):
        with pytest.raises(ValueError, match=message):
            mora.embed(fields.pop("model"), None, fields.pop("out"), **fields)


def test_a_merged_folder_embeds_as_the_run_and_has_no_head(run, tmp_path):
    merge_run(run, tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert "classifier.safetensors" not in names and {"open_clip_model.safetensors", "classifier.json"} <= names
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "were trained on pairs of pairs" in card and "median rank" in card
    data = InMemory(4)
    merged = embed_rows(open_model(tmp_path / "merged"), data)
    for modality, rows in embed_rows(open_model(run), data).rows.items():
        torch.testing.assert_close(merged.rows[modality], rows, rtol=1e-4, atol=1e-5)
    code = (
        card.split("```python\n")[1].split("```")[0].replace('folder = "."', f"folder = {str(tmp_path / 'merged')!r}")
    )
    exec(code, {})


def test_names_in_reports_are_escaped():
    way = Direction("image", "text", 2, 2, {1: 0.5, 5: 1.0, 10: 1.0}, 1.5)
    one = Retrieved("=1+1|x", "adapted", "none", 0.0, None, None, 2, 2, (way,))
    data = {"name": "d", "split": "test", "source": "d", "samples": 2, "fingerprint": "f" * 64}
    found = Comparison("retrieval", [one], [{"label": "=1+1|x", "folder": "f"}], data, "mora evaluate")
    assert ",'=1+1|x" in "," + as_csv(found).splitlines()[1] and r"=1+1\|x" in markdown(found)
