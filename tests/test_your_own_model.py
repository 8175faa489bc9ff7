"""The page about a model of one's own runs as it stands."""

import re
from pathlib import Path

import torch

import mora

PAGE = (Path(__file__).parents[1] / "docs" / "your_own_model.md").read_text()


def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        inputs = {
            "image": torch.randn(3, 16, 12, generator=generator),
            "text": torch.randint(100, (3, 10), generator=generator),
            "audio": torch.randn(3, 20, 7, generator=generator),
        }
        present = {"audio": torch.tensor([True, False, True]), "text": torch.tensor([True, True, False])}
        yield inputs, present, torch.tensor([0, 1, 4])


def test_the_page_runs(monkeypatch, tmp_path):
    model_code, adapting = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"loader": list(batches())}
    exec(model_code, names)
    plain = names["Three"]()
    exec(adapting, names)
    code = [line for line in adapting.splitlines() if line]
    assert len(code) <= 20, "the heading promises twenty"
    assert list(names["model"].state_dict()) == list(plain.state_dict())
    loaded = mora.load_adapter(
        plain, tmp_path / "adapter", base="any", towers=names["towers"] | {"audio": "audio.blocks"}
    )
    assert loaded.mora.layers() == {"image": [2, 3], "text": [1, 2], "audio": [0, 1]}
