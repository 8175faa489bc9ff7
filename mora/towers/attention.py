"""The modules that stand for `nn.MultiheadAttention` and for open_clip's own attention: same call, same result.

Attention is computed by `scaled_dot_product_attention`, with the parameters and keys of the module it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mora.towers.packed import PackedAttention


class MultiheadAttention(PackedAttention):
    """Stands for `nn.MultiheadAttention` (batched input); same call, same result up to rounding."""

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__(original)
        self.embed_dim, self.batch_first = original.embed_dim, original.batch_first
        self.dropout_p = original.dropout
        # `nn.TransformerEncoderLayer` asks for it before it computes the attention itself, from the frozen weights.
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`: boolean masks are True where attention is NOT allowed."""
        if not self.is_on:
            return self.give_back().forward(  # not its hooks, which are this module's as well
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        if query.dim() != 3:
            raise ValueError(f"query: got shape {tuple(query.shape)}, expected (batch, length, {self.embed_dim})")
        if query.is_nested:
            raise ValueError(
                "query: got a nested tensor, expected nn.TransformerEncoder(..., enable_nested_tensor=False)"
            )
        if not self.batch_first:
            same = query is key and key is value
            query = query.transpose(0, 1)
            key, value = (query, query) if same else (key.transpose(0, 1), value.transpose(0, 1))
        q, k, v = self.project(query, key, value)
        mask = additive_mask(attn_mask, key_padding_mask, q, k)
        dropout_p = self.dropout_p if self.training else 0.0
        weights = None
        if need_weights:
            x, weights = attend_with_weights(q, k, v, mask, dropout_p)
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            causal = is_causal and mask is None
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=causal)
        x = self.out_proj(rearrange(x, "b h l d -> b l (h d)"))
        return (x if self.batch_first else x.transpose(0, 1)), weights


class OpenClipAttention(PackedAttention):
    """Stands for `open_clip.transformer.Attention`, the class open_clip's own and newer blocks use."""

    ln_q: nn.Module
    ln_k: nn.Module
    ln_inner: nn.Module
    attn_drop: nn.Dropout
    out_drop: nn.Module
    head_scale: Tensor | None

    def __init__(self, original: Any) -> None:
        super().__init__(original)
        self.scale: float = original.scale
        # In the newer class (which takes k_x, v_x) a boolean mask is True where attention IS allowed.
        self.boolean_keeps = "k_x" in original.forward.__code__.co_varnames

    def forward(
        self,
        x: Tensor,
        *positional: Tensor | None,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """As the original: (x, k_x, v_x, attn_mask) in the newer class, (x, attn_mask) in the older one."""
        if positional:
            names = ("k_x", "v_x", "attn_mask") if self.boolean_keeps else ("attn_mask",)
            given = dict(zip(names, positional, strict=False))
            k_x, v_x = given.get("k_x", k_x), given.get("v_x", v_x)
            attn_mask = given.get("attn_mask", attn_mask)
        if not self.is_on:
            others = {"k_x": k_x, "v_x": v_x} if self.boolean_keeps else {}
            return self.give_back().forward(x, attn_mask=attn_mask, **others)
        q, k, v = self.project(x, x if k_x is None else k_x, x if v_x is None else v_x)
        if attn_mask is not None and attn_mask.dtype == torch.bool and self.boolean_keeps:
            attn_mask = ~attn_mask
        y = F.scaled_dot_product_attention(
            self.ln_q(q),
            self.ln_k(k),
            v,
            attn_mask=additive_mask(attn_mask, None, q, k),
            dropout_p=self.attn_drop.p if self.training else 0.0,
            scale=self.scale,
        )
        if self.head_scale is not None:
            y = y * self.head_scale
        return self.out_drop(self.out_proj(self.ln_inner(rearrange(y, "b h l d -> b l (h d)"))))


def additive_mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """One float mask, broadcastable to [batch, heads, length of q, length of k], in the dtype of q; or None."""
    total = None
    for mask, shape in ((attn_mask, None), (key_padding_mask, (q.shape[0], 1, 1, k.shape[2]))):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))
        if shape is not None:
            mask = mask.view(shape)
        elif mask.dim() == 3:
            mask = mask.view(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        mask = mask.to(q.dtype)
        total = mask if total is None else total + mask
    return total


def attend_with_weights(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> tuple[Tensor, Tensor]:
    """Attention and its weights [batch, heads, length of q, length of k], for those who ask to see them."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = F.dropout((scores if mask is None else scores + mask).softmax(dim=-1), p)
    return weights @ v, weights


def unsupported(attention: nn.Module) -> Mapping[str, str]:
    """Why a packed attention cannot be adapted: {option: what it does}; empty when it can."""
    reasons = {}
    if getattr(attention, "in_proj_weight", None) is None:
        reasons["in_proj_weight"] = "q, k, v are not packed (kdim or vdim differs from embed_dim)"
    if getattr(attention, "bias_k", None) is not None or getattr(attention, "add_zero_attn", False):
        reasons["add_bias_kv / add_zero_attn"] = "adds rows to keys and values"
    if getattr(attention, "scaled_cosine", False):
        reasons["scaled_cosine"] = "replaces the scaled dot product"
    return reasons
