"""What is timed beside what: one projection, and a whole training step of CLIP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.autograd.graph import increment_version

import mora_kernels
from benchmarks.official import official_linear
from benchmarks.sites import Site

Run = Callable[[], object]


def trained(forward: Callable[[torch.Tensor], torch.Tensor], site: Site, device: str, autocast: bool = True) -> Run:
    """Forward under autocast and backward to every leaf, gradients thrown away."""
    x = site.x.clone().requires_grad_()
    grad = site.grad.half() if autocast else site.grad
    leaves = [x, *site.leaves().values()]

    def run() -> object:
        with torch.autocast(device, dtype=torch.float16, enabled=autocast):
            y = forward(x)
        return torch.autograd.grad(y, leaves, grad, allow_unused=True)

    return run


def projection(sites: Sequence[Site], dropout: float, device: str, compiled: bool) -> dict[str, Run]:
    """Providers of one projection, forward and backward with dX, float32 input under fp16 autocast."""
    site = sites[0]
    group = mora_kernels.Group(sites[:1], "triton")

    def official(x: torch.Tensor) -> torch.Tensor:
        return official_linear(x, site.weight, site.bias, *site.factors(), site.alpha, dropout)

    def fused(x: torch.Tensor) -> torch.Tensor:
        increment_version(site.own["specific_b"])  # as after an optimizer step: the build is part of the time
        return group.linear(0, x, site.bias, dropout)

    frozen = nn.Linear(site.weight.shape[1], site.weight.shape[0], device=device).requires_grad_(False)
    runs = {
        "official": trained(official, site, device),
        "triton": trained(fused, site, device),
        "frozen nn.Linear": trained(lambda x: frozen(nn.functional.dropout(x, dropout)), site, device),
    }
    if compiled:
        runs["official compiled"] = trained(torch.compile(official, dynamic=False), site, device)
    for name, dora in (("PEFT LoRA", False), ("PEFT DoRA", True)):
        layer = peft_layer(frozen, dropout, dora, device)
        if layer is not None:
            runs[name] = peft_run(layer, site, device)
    return runs


def peft_layer(frozen: nn.Linear, dropout: float, dora: bool, device: str) -> nn.Module | None:
    """A LoRA or DoRA of the same total rank around the frozen projection; None where PEFT is absent."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        print("  PEFT is not installed: its rows are left out")
        return None
    config = LoraConfig(r=8, lora_alpha=8, lora_dropout=dropout, target_modules=["0"], use_dora=dora)
    return get_peft_model(nn.Sequential(nn.Linear(**shape(frozen), device=device)), config).train()


def shape(linear: nn.Linear) -> dict[str, int]:
    """The widths of a linear layer, as its constructor takes them."""
    return {"in_features": linear.in_features, "out_features": linear.out_features}


def peft_run(layer: nn.Module, site: Site, device: str) -> Run:
    """Forward and backward of a PEFT layer."""
    x, grad = site.x.clone().requires_grad_(), site.grad.half()
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]

    def run() -> object:
        with torch.autocast(device, dtype=torch.float16):
            y = layer(x)
        return torch.autograd.grad(y, leaves, grad, allow_unused=True)

    return run


def clip(smoke: bool, device: str) -> nn.Module | None:
    """A ViT-B/16 CLIP of transformers with random weights, quick GELU; None where transformers is absent."""
    try:
        from transformers import CLIPConfig, CLIPModel
    except ImportError:
        print("transformers is not installed: the training step is left out")
        return None
    text, vision = {"hidden_act": "quick_gelu"}, {"hidden_act": "quick_gelu", "patch_size": 16}
    if smoke:
        small = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        text |= {**small, "hidden_size": 32, "vocab_size": 99, "bos_token_id": 97, "eos_token_id": 98}
        vision |= {**small, "hidden_size": 48, "image_size": 32}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).to(device)


def training_step(model: nn.Module, pixels: torch.Tensor, tokens: torch.Tensor, device: str) -> Run:
    """Both towers under fp16 autocast, a classifier's loss, backward, AdamW: the published recipe's step."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, capturable=device == "cuda")

    def run() -> None:
        with torch.autocast(device, dtype=torch.float16):
            image = model.get_image_features(pixel_values=pixels)
            text = model.get_text_features(input_ids=tokens)
        features = [getattr(each, "pooler_output", each).float() for each in (image, text)]
        torch.cat(features, dim=1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def steps(device: str, smoke: bool) -> Iterator[tuple[dict[str, object], dict[str, Run]]]:
    """Yield (shape, providers) of the whole training step, last two layers, q and v, as published, nothing cached."""
    try:
        import mora
        from mora.linear import MoraLinear
    except ImportError as error:
        print(f"the training step is left out: {error}")
        return

    def official(self: MoraLinear, x: torch.Tensor) -> torch.Tensor:
        return official_linear(x, self.weight, self.bias, *self.factors(), self.alpha, self.dropout, self.training)

    for batch in (2,) if smoke else (16, 32, 256):
        models = {name: clip(smoke, device) for name in ("official", "triton", "frozen towers")}
        if None in models.values():
            return
        vision, text = models["official"].config.vision_config, models["official"].config.text_config
        pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, device=device)
        tokens = torch.randint(1, text.vocab_size - 3, (batch, text.max_position_embeddings), device=device)
        tokens[:, -1] = text.eos_token_id
        for name, backend in (("official", "torch"), ("triton", "triton")):
            mora.patch(models[name], rank=4, alpha=0.01, targets=("q", "v"), last_layers=2, backend=backend)
        for module in models["official"].modules():
            if isinstance(module, MoraLinear):
                module.forward = official.__get__(module)
        frozen = models["frozen towers"].requires_grad_(False)
        frozen.visual_projection.weight.requires_grad_()
        frozen.text_projection.weight.requires_grad_()
        runs = {name: training_step(model, pixels, tokens, device) for name, model in models.items()}
        yield {"model": "ViT-B/16", "batch": batch, "autocast": "float16"}, runs
