"""The code in a model card that makes logits of the two embeddings, `parts`, for each kind of head."""

from __future__ import annotations

from collections.abc import Sequence

from mora.data.presence import PAIR
from mora.heads import BIAS, LEARNED, LINEAR, NONE, PROTOTYPES, SUBSTITUTE, ZERO_SHOT

LOAD = """head = load_file(f"{folder}/classifier.safetensors")
"""
THERE = """there = [True, True]  # whether the image is there, and the text
"""
THERE_OF_MANY = """there = [{all}]  # whether each is there: {names}
"""
INSTEAD = {
    LEARNED: """missing = [{learned}]
parts = [part if has else instead for part, has, instead in zip(parts, there, missing)]
""",
    "zero": """parts = [part if has else torch.zeros_like(part) for part, has in zip(parts, there)]
""",
}
JOINED = """features = torch.cat(parts, dim=-1)
"""
PATTERN = """pattern = {code} - 1
"""
LOGITS = {
    LINEAR: """logits = features @ head["weight"].T + head["bias"]
""",
    BIAS: """logits = features @ head["weight"].T + head["bias"][pattern]
""",
    PROTOTYPES: """normalize = torch.nn.functional.normalize
cosines = normalize(features - head["center"][pattern], dim=-1) @ normalize(head["prototypes"][pattern], dim=-1).T
logits = head["log_scale"].exp() * cosines + head["bias"][pattern]
""",
    ZERO_SHOT: """normalize = torch.nn.functional.normalize
directions = [normalize(part, dim=-1) for part, has in zip(parts, there) if has]
logits = head["scale"] * (sum(directions) / len(directions)) @ head["classes"].T
""",
}


COSINE = """image, text = (torch.nn.functional.normalize(part, dim=-1) for part in parts)
print(float(image @ text.T))  # their cosine
"""


def head_code(head: str, missing_embedding: str, modalities: Sequence[str] = PAIR) -> str:
    """From `parts`, an embedding of each modality, to `logits`; without a head, to `cosine`."""
    if head == NONE:
        return COSINE
    learned = ", ".join(f'head["missing.{name}"][None]' for name in modalities)
    code = " + ".join(f"{1 << m} * there[{m}]" if m else "there[0]" for m in range(len(modalities)))
    program = LOAD
    if (head, missing_embedding) != (LINEAR, SUBSTITUTE):
        every = ", ".join(["True"] * len(modalities))
        told = THERE_OF_MANY.format(all=every, names=", ".join(modalities))
        program += THERE if set(modalities) == set(PAIR) else told
    program += INSTEAD.get(missing_embedding, "").replace("{learned}", learned)
    program += JOINED if head != ZERO_SHOT else ""
    program += PATTERN.format(code=code) if head in (BIAS, PROTOTYPES) else ""
    return program + LOGITS[head]
