"""Deep prompts, the peers' way to adapt a CLIP to missing modalities: learned tokens in the first blocks.

As in DCP (arXiv 2410.06558) and SyP: 36 prompts per block in the first 6 blocks, chosen by which modality a row lacks,
each block's prompts in the place of the block's before; after the sixth they stay to the end. So every block runs on 36
tokens more. Theirs loops over the rows of a batch in Python; this one gathers every row's prompts at once, and leaves
out the networks that make them, so it is faster than what they publish: the fair inference peer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENGTH, DEPTH, KINDS = 36, 6, 3  # prompts of a block; blocks; complete, text missing, image missing


class PromptedCLIP(nn.Module):
    """A frozen Hugging Face CLIP with deep prompts.

    Args:
        model: `transformers.CLIPModel`.
        length: prompts per block.
        depth: blocks that have prompts of their own.
    """

    def __init__(self, model: nn.Module, length: int = LENGTH, depth: int = DEPTH) -> None:
        super().__init__()
        self.model, self.length = model.requires_grad_(False), length
        config = model.config
        blocks = {"image": config.vision_config, "text": config.text_config}
        device = next(model.parameters()).device
        self.prompts = nn.ParameterDict(
            {
                name: torch.randn(min(depth, c.num_hidden_layers), KINDS, length, c.hidden_size, device=device) * 0.02
                for name, c in blocks.items()
            }
        )

    def encode_image(self, image: Tensor, kind: Tensor) -> Tensor:
        """Embeddings [B, e] of images; `kind` int64 [B] says what each row lacks."""
        tower = self.model.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(image))
        hidden = self.blocks("image", tower.encoder.layers, hidden, kind, None)
        return self.model.visual_projection(tower.post_layernorm(hidden[:, 0]))

    def encode_text(self, text: Tensor, kind: Tensor) -> Tensor:
        """Embeddings [B, e] of token ids [B, L]; prompts stand after the begin token, where every token sees them."""
        tower = self.model.text_model
        hidden = tower.embeddings(input_ids=text)
        length = hidden.shape[1] + self.length
        mask = torch.full((length, length), float("-inf"), dtype=hidden.dtype, device=hidden.device).triu(1)
        hidden = self.blocks("text", tower.encoder.layers, hidden, kind, mask[None, None])
        end = (text == tower.eos_token_id).int().argmax(dim=-1) + self.length
        pooled = tower.final_layer_norm(hidden)[torch.arange(len(hidden), device=hidden.device), end]
        return self.model.text_projection(pooled)

    def blocks(self, name: str, layers: nn.ModuleList, hidden: Tensor, kind: Tensor, mask: Tensor | None) -> Tensor:
        """Every block, on [first token, prompts, the rest]."""
        prompts = self.prompts[name]
        first, rest = hidden[:, :1], hidden[:, 1:]
        for index, layer in enumerate(layers):
            if index < len(prompts):
                hidden = torch.cat([first, prompts[index][kind], rest], dim=1)
            output = layer(hidden, attention_mask=mask)
            hidden = output if isinstance(output, Tensor) else output[0]
            first, rest = hidden[:, :1], hidden[:, 1 + self.length :]
        return hidden


def embed_row(prompted: PromptedCLIP, image: Tensor, text: Tensor, kind: int) -> Tensor:
    """[image; text] [2 e] of one row, by `F.scaled_dot_product_attention` block by block: what a batch must equal."""
    model = prompted.model
    hidden = model.vision_model.pre_layrnorm(model.vision_model.embeddings(image[None]))[0]
    rows = plain_blocks(model.vision_model.encoder.layers, hidden, prompted.prompts["image"][:, kind], causal=False)
    image_embedding = model.visual_projection(model.vision_model.post_layernorm(rows[0]))
    hidden = model.text_model.embeddings(input_ids=text[None])[0]
    rows = plain_blocks(model.text_model.encoder.layers, hidden, prompted.prompts["text"][:, kind], causal=True)
    end = int((text == model.text_model.eos_token_id).int().argmax()) + prompted.length
    return torch.cat([image_embedding, model.text_projection(model.text_model.final_layer_norm(rows[end]))])


def plain_blocks(layers: nn.ModuleList, hidden: Tensor, prompts: Tensor, causal: bool) -> Tensor:
    """One row [L, d] through every block, prompts [depth, P, d] after its first token."""
    for index, layer in enumerate(layers):
        start = 1 if index == 0 else 1 + prompts.shape[1]
        own = prompts[index] if index < len(prompts) else hidden[1:start]
        hidden = torch.cat([hidden[:1], own, hidden[start:]])
        attention, normed = layer.self_attn, layer.layer_norm1(hidden)
        q, k, v = (
            project(normed).unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(0, 1).flatten(1)
        hidden = hidden + attention.out_proj(attended)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden
