"""`mora.diagnose`: what moved in an adapted model, how far, and what to change."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mora.adapters.patching import disabled
from mora.adapters.record import adapters_of, is_patched, unwrap
from mora.classifier import MissingModalityClassifier
from mora.config import MoraConfig
from mora.diagnosis.behaviour import Batch, Encode, drifts, heads, pairings, see, zero_shot
from mora.diagnosis.figures import Behaviour
from mora.diagnosis.report import Diagnosis
from mora.diagnosis.start import Start, known_start
from mora.diagnosis.weights import measure
from mora.towers.cutting import evaluating
from mora.towers.tower import Tower, fitting


def diagnose(
    model: nn.Module,
    batch: Mapping[str, Tensor] | None = None,
    *,
    present: Mapping[str, Tensor] | None = None,
    labels: Tensor | None = None,
    prompts: Tensor | None = None,
    start: Start | None = None,
) -> Diagnosis:
    """Measure what adapters did to a model and return it: `print(mora.diagnose(model, batch))`.

    The model is run in eval mode, with and without its adapters, and left as it was.

    Args:
        model: patched, or a `MissingModalityClassifier` on one, of which the head is looked at as well.
        batch: inputs by modality, {"image": [B, 3, H, W], "text": [B, L]}, row i of all being one sample; a modality
            may be left out. None: weights and head alone.
        present: bool [B] by modality, rows to look at; all, where not given.
        labels: int64 [B], or multi-hot [B, C]: the classes of the rows.
        prompts: text inputs [C, L] of the class names; with `labels`, zero-shot accuracy before and after.
        start: the adapters before training: copies of the tensors of `mora.adapter_state_dict(model)`, or a folder of
            `mora.save_adapter`. Without it the learned move is known for `init="identity"` alone, whose start is W.

    Raises:
        ValueError: `model` is not patched; a batch, mask, label or start that does not fit, by its name.
    """
    classifier = classifier_in(model)
    clip = model if classifier is None else classifier.model
    if not is_patched(clip):
        inside = "" if classifier is None else f" around a {type(clip).__name__}"
        raise ValueError(
            f"model: got a {type(model).__name__}{inside} that is not patched, expected one after mora.patch (of a "
            "merged one nothing is known), or a MissingModalityClassifier around it"
        )
    adapters = adapters_of(clip)
    if batch is not None and any(slot.one_stream for slot in adapters.slots()):
        raise ValueError(
            "batch: got one for a single-stream model, in which no tower embeds a modality alone, expected None: the "
            "weights alone are looked at then"
        )
    kept = known_start(adapters, start)
    checked = Batch.checked(adapters.towers, batch, present, labels, prompts)
    return patched_diagnosis(unwrap(clip), checked, classifier, kept)


def patched_diagnosis(
    clip: nn.Module,
    batch: Batch,
    classifier: MissingModalityClassifier | None,
    start: Mapping[str, Tensor] | None,
    ranks: bool = True,
) -> Diagnosis:
    """The diagnosis of a patched model, of checked arguments; without `ranks`, effective ranks are left out."""
    adapters = adapters_of(clip)
    projections, grams = measure(adapters, start, ranks)
    encode = encoder(clip, adapters.towers)

    def pretrained(modality: str, rows: Tensor) -> Tensor:
        with disabled(clip):
            return encode(modality, rows)

    return Diagnosis(
        method=method_of(adapters.config),
        identity=adapters.config.init == "identity" or "mora" not in adapters.config.modes(),
        projections=projections,
        grams=grams,
        behaviour=behaviour(clip, adapters.towers, encode, pretrained, batch, classifier),
    )


def method_of(config: MoraConfig) -> str:
    """What `mora train --method` calls it; "lora+mora" where towers differ."""
    if config.modes() != {"mora"}:
        return "+".join(sorted(config.modes()))
    return "mora" if config.variant == "official" else f"mora-{config.variant}"


def classifier_in(model: nn.Module) -> MissingModalityClassifier | None:
    """The classifier, inside whatever wrappers; None where there is none."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: got {type(model).__name__}, expected a patched model")
    return next((one for one in model.modules() if isinstance(one, MissingModalityClassifier)), None)


def encoder(model: nn.Module, towers: Mapping[str, Tower]) -> Encode:
    """Rows of a modality -> embeddings by its tower, on the model's device and in its dtype."""
    like = next(model.parameters())
    return lambda modality, rows: towers[modality].encode(model, fitting(rows, like))


def behaviour(
    clip: nn.Module,
    towers: Mapping[str, Tower],
    encode: Encode,
    pretrained: Encode,
    batch: Batch,
    classifier: MissingModalityClassifier | None,
) -> Behaviour:
    """What the adapted model makes of a batch, beside the pretrained one."""
    head = None if classifier is None else classifier.head
    widths = {} if classifier is None else {name: tower.width(clip) for name, tower in towers.items()}
    if not batch.inputs:
        return Behaviour(heads=heads(head, widths, None))
    with evaluating(clip):
        now, before = see(encode, batch), see(pretrained, batch)
    return Behaviour(
        drifts(now, before), pairings(now, before, batch), zero_shot(now, before, batch), heads(head, widths, now)
    )
