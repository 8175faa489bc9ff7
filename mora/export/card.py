"""The model card: how to load it, how it was made, from what, how good it is, and under which licences."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mora.data.presence import PAIR
from mora.evaluation.tables import FIGURES, Table, percent
from mora.export.formats import HUGGING_FACE, MERGES, OWN, merges_of
from mora.export.head_code import head_code
from mora.heads import NONE
from mora.patterns import names_in
from mora.runs.backbone import TINY
from mora.runs.methods import UNSIZED
from mora.system.markup import Markdown, code, plain
from mora.system.messages import printable

if TYPE_CHECKING:
    from mora.runs.run import LoadedRun

OPEN_CLIP_CODE = """import json, open_clip, torch
from PIL import Image
from safetensors.torch import load_file

folder = "."  # this one
clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{folder}}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{{folder}}"{merges})
image = preprocess(Image.new("RGB", (640, 640), "white"))[None]  # your image; a missing one is white
text = tokenizer(["a text"])  # your text; a missing one is ""{policy}
with torch.no_grad():
    parts = [clip.eval().encode_image(image), clip.encode_text(text)]
"""
HUGGING_FACE_CODE = """import json, torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

folder = "."  # this one
clip, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
image = CLIPImageProcessor.from_pretrained(folder)(Image.new("RGB", (640, 640), "white"), return_tensors="pt")
text = tokenizer(["a text"], padding="max_length", truncation=True, return_tensors="pt")["input_ids"]{policy}
with torch.no_grad():  # a missing image is white, a missing text is ""
    parts = [clip.get_image_features(**image).pooler_output, clip.get_text_features(text).pooler_output]
"""
OWN_CODE = """import json, torch
from safetensors.torch import load_file

folder = "."  # this one
model = ...  # of the backbone's own class
model.load_state_dict(load_file(f"{{folder}}/model.safetensors"))
with torch.no_grad():  # embeddings [1, e], projected, in this order; a missing input is its substitute
    parts = [...]  # {modalities}
"""
CLASSES_CODE = """classes = json.load(open(f"{folder}/classifier.json"))["classes"]
"""
ANSWERS = {
    False: "print(classes[logits.argmax()])",
    True: "print([name for name, p in zip(classes, logits.sigmoid()[0]) if p > 0.5])",
}
POLICY = """
text[(text == text.max()).int().argmax(-1) == text.shape[1] - 1, -2] = text.max()  # as in training"""

# (spelling of the hub, in words); weights that are not listed have a licence of their own that mora does not know.
TINY_LICENCE = ("apache-2.0", "Apache-2.0; pretrained on drawings under CC BY-SA 4.0 and other licences")
TAG_LICENCES = {
    "openai": ("mit", "MIT (OpenAI)"),
    "laion": ("mit", "MIT (LAION, OpenCLIP)"),
    "datacomp": ("mit", "MIT (DataComp, OpenCLIP)"),
}
UNKNOWN = ("other", "not known here: see where the weights come from")
DATA_LICENCES = {
    "openmoji": "drawings CC BY-SA 4.0 (OpenMoji); names and keywords Unicode License",
    "hateful_memes": "Meta's Hateful Memes licence agreement",
}


def snippet(
    library: str,
    multi_label: bool,
    token_policy: str,
    merges: bool,
    head: str,
    missing_embedding: str,
    modalities: Sequence[str] = PAIR,
) -> str:
    """The code that loads the folder and classifies one sample."""
    policy = POLICY if token_policy == "official" else ""
    if library == HUGGING_FACE:
        program = HUGGING_FACE_CODE.format(policy=policy)
    elif library == OWN:
        program = OWN_CODE.format(modalities=", ".join(modalities))
    else:
        program = OPEN_CLIP_CODE.format(policy=policy, merges=f', bpe_path=f"{{folder}}/{MERGES}"' if merges else "")
    if head == NONE:
        for unused in ("json, ", "from safetensors.torch import load_file\n"):
            program = program.replace(unused, "", 1)
        return program + head_code(head, missing_embedding, modalities)
    return program + head_code(head, missing_embedding, modalities) + CLASSES_CODE + ANSWERS[multi_label]


def model_card(run: LoadedRun, about: dict[str, Any]) -> str:
    """README.md."""
    backbone = printable(" ".join(filter(None, (run.backbone.name, run.backbone.pretrained))))
    name = plain(run.data["name"])
    hub, licence = licence_of(run.backbone.name, run.backbone.pretrained)
    library = {HUGGING_FACE: "transformers", OWN: "pytorch"}.get(about["library"], "open_clip")
    modalities = tuple(run.model.towers)
    front = f"---\nlicense: {hub}\nlibrary_name: {library}\ntags:\n- clip\n- missing-modality\n- mora\n---"
    merges = merges_of(run.backbone) is not None
    kinds = about["head"], about["missing_embedding"]
    program = snippet(about["library"], run.multi_label, about["token_policy"], merges, *kinds, modalities)
    parts = [
        front,
        f"# {name}: {plain(backbone)}, adapted by {run.method}, merged",
        f"{purpose(run, about['head'])} The adapters are folded into the weights: nothing of mora is needed to use it.",
        f"## Use\n\n```python\n{program}\n```",
        notes(about, run.backbone.name == TINY),
        f"## How good\n\n{scores(run, about)}",
        f"## How it was trained\n\n{training(run).markdown()}",
        f"## Data\n\n{data(run).markdown()}\n\n{tables_said(run)}",
        f"## Merged against adapted\n\n{proof(about['merged_against_adapted'])}",
        f"## Licences\n\n- Backbone {code(backbone)}: {licence}.\n- Data {code(run.data['name'])}: "
        f"{DATA_LICENCES.get(run.data['name'], 'not known here: that of your data')}.",
        f"## Versions\n\n{plain(', '.join(f'{n} {v}' for n, v in run.config.get('versions', {}).items()))}; merged by "
        f"mora-kernels {about['mora_version']}.",
    ]
    return "\n\n".join(parts) + "\n"


def purpose(run: LoadedRun, head: str) -> str:
    """What the model is for, in a sentence."""
    name = plain(run.data["name"])
    if head == NONE:
        return f"A plain CLIP whose embeddings of images and texts were trained on pairs of {name}, some incomplete."
    several = ", several per sample" if run.multi_label else ""
    towers = tuple(run.model.towers)
    lost = "the image or the text" if set(towers) == set(PAIR) else f"some of {', '.join(towers)}"
    return (
        f"A plain CLIP and a head ({head}) that sort samples into {len(run.classes)} classes of {name}{several}, when "
        f"{lost} may be missing."
    )


def shown(name: str, figures: dict[str, float]) -> str:
    """A figure in percent, a rank as it is; "" where it is absent."""
    if name not in figures:
        return ""
    return f"{figures[name]:g}" if name.endswith("median_rank") else f"{100 * figures[name]:.2f}"


def notes(about: dict[str, Any], tiny: bool) -> str:
    """What to mind when using it."""
    lines = [
        "A sample may lack its image or its text, not both."
        if about["library"] != OWN
        else "A sample may lack any of its modalities, not all.",
        "Embeddings are not normalised.",
        "Put transparent pictures on white first.",
    ]
    if about["library"] == HUGGING_FACE:
        lines.append(
            "transformers resizes pictures and cleans texts slightly differently from open_clip, with which the model "
            "was trained; equal inputs give equal embeddings."
        )
        if tiny:
            lines.append("The image processor squeezes pictures to a square: pad them to a square with white first.")
    return "\n".join(f"- {line}" for line in lines)


def licence_of(name: str, pretrained: str | None) -> tuple[str, str]:
    """(spelling of the hub, in words) of a backbone's weights, as far as it is known."""
    if name == TINY:
        return TINY_LICENCE
    if pretrained is None or os.path.basename(pretrained) != pretrained or os.path.exists(pretrained):
        return UNKNOWN  # a file, whatever it is called
    return next((licence for tag, licence in TAG_LICENCES.items() if pretrained.startswith(tag)), UNKNOWN)


def scores(run: LoadedRun, about: dict[str, Any]) -> str:
    """Figures on validation and test."""
    parts = {"validation": about["validation"] or {}, "test": about["test"] or {}}
    names = list(dict.fromkeys(name for figures in parts.values() for name in figures))
    rows = [
        [FIGURES.get(name, name.replace("_", " ")), *(shown(name, figures) for figures in parts.values())]
        for name in names
    ]
    metric, apart = run.metric, about["by_pattern"]
    for name in names_in(apart.values()):
        values = [apart.get(part, {}).get(name, {}).get(metric) for part in parts]
        rows.append([f"{FIGURES[metric]}, {name}", *("" if v is None else f"{100 * v:.2f}" for v in values)])
    table = Table("Scores", ["in %", *parts], rows, set()).markdown()
    return f"{table}\n\nThe validation part chose the epoch ({about['best_epoch']}), so it is optimistic; one training."


def training(run: LoadedRun) -> Table:
    """Method and recipe."""
    adapters, recipe = run.mora_config.to_dict(), run.config.get("train", {})
    rows = [["method", run.method]]
    if run.method not in UNSIZED:
        blocks = (
            f"last {adapters['last_layers']}" if adapters["first_layer"] is None else f"{adapters['first_layer']} on"
        )
        blocks = str(adapters["layers"]) if "layers" in adapters else blocks
        targets = adapters["targets"]
        rows += [
            ["rank (specific)", str(adapters["rank"])],
            ["targets", ", ".join(targets) if isinstance(targets, list) else str(targets)],
            ["blocks of each tower", blocks],
            ["dropout", str(adapters["dropout"])],
        ]
        rows += [[name.replace("_", " "), str(adapters[name])] for name in ("pair_layers", "adapt") if name in adapters]
    if run.method.startswith("mora"):
        rows += [
            ["rank (common)", str(adapters["common_rank"] or adapters["rank"])],
            ["alpha", str(adapters["alpha"])],
            ["init", adapters["init"]],
        ]
    if run.method in ("lora", "dora"):
        rows.append(["lora_alpha / rank", str(run.config["lora_scale"])])
    wanted = ("epochs", "batch", "accumulation", "lr", "head_lr", "weight_decay", "warmup", "precision", "seed")
    rows += [[name.replace("_", " "), str(recipe[name])[:40]] for name in wanted if recipe.get(name) is not None]
    rows += [[name.replace("_", " "), str(recipe[name])[:40]] for name in ("patches", "word_drop") if recipe.get(name)]
    rows += [["head", run.model.head_kind], ["missing embedding", run.model.missing_embedding]]
    rows += [["token policy", run.config["token_policy"]], ["processes", str(run.config.get("processes", 1))]]
    return Table("Training", ["", "value"], rows, set(), words=2)


def data(run: LoadedRun) -> Table:
    """Rows, fingerprints and missing tables by split."""
    given = run.data
    rows = []
    for split, fingerprint in given.get("fingerprints", {}).items():
        table = run.config.get("tables", {}).get(split, {})
        missing = percent(table.get("missing", "none"))
        seed = str(table["seed"]) if table.get("seed") is not None else ""
        shown = Markdown(code(fingerprint[:16]).replace("|", r"\|"))
        rows.append([split, shown, missing, seed, f"{given.get('rows', {}).get(split, 0):,}"])
    return Table("Data", ["split", "fingerprint", "simulated missing", "table's seed", "rows"], rows, set(), words=3)


def tables_said(run: LoadedRun) -> str:
    """Source, and what a rate means."""
    source = Path(str(run.data["source"])).name
    return (
        f'Source: {code(source)}. A rate counts what is MISSING; "both 70 %" took the text of 35 % of the rows and the '
        "image of 35 %. The fingerprint is a SHA-256 over rows, texts, labels and image sizes. The backbone's weights: "
        f"SHA-256 `{run.config['backbone']['sha256'][:16]}`."
    )


def proof(found: dict[str, Any]) -> str:
    """How far the merged model is from the adapted one."""
    return (
        f"Loaded again from this folder, the model's logits (without a head: embeddings) differ from the adapted "
        "model's by at most "
        f"{found['max_difference']:.1e} (largest logit {found['max_logit']:.1f}) on {found['rows']} random rows, "
        f"complete and with modalities missing; {found['changed_predictions']} predictions change."
    )
