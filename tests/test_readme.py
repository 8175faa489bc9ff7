"""The README's first example runs as it stands, on a small CLIP in place of the download."""

import re
from pathlib import Path

import open_clip
import torch

import mora
from tests.mora.models import images, open_clip_model, tokens

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_first_example(monkeypatch, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    clip = open_clip_model()
    asked = {}

    def create(name, pretrained):
        asked.update(name=name, pretrained=pretrained)
        return clip, None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    monkeypatch.chdir(tmp_path)
    keys = list(clip.state_dict())
    present = torch.tensor([True, False, True])
    exec(code, {"loader": [(images(), tokens(), present, ~present, torch.tensor([0, 1, 100]))] * 2})
    assert asked == {"name": "ViT-B-16-quickgelu", "pretrained": "openai"}
    assert open_clip.get_model_config(asked["name"])
    assert list(clip.state_dict()) == keys
    mora.load_adapter(open_clip_model(), tmp_path / "adapter")


def test_both_commands_stand_there():
    assert "pip install -e '.[train]' && mora demo" in README
    assert "pip install -e '.[dev]' && pytest" in README
