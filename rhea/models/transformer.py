"""The one transformer: Llama-2 type, as in Emu3 (arXiv 2409.18869): RMSNorm, GQA, SwiGLU, RoPE, no biases, untied head.

It serves training and generation alike (an optional cache argument, never a second model), and ``hidden`` and
``logits`` are apart so that a caller computes only the rows of the head that it needs. Missing parts are tolerated
(``embed_tokens``, ``norm``, ``lm_head`` set to None, layers removed), so that pipeline stages are this same class.

Shapes: B rows, T tokens, D channels, V vocabulary rows.
"""

from collections.abc import Iterable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhea.errors import InputError
from rhea.models.attention import Attention
from rhea.models.cache import Cache, PlacedCache
from rhea.models.config import TransformerConfig
from rhea.models.layers import FeedForward, RMSNorm, Rotary, compute_dtype, rotary
from rhea.models.native import operators
from rhea.models.native.operators import FusedLayers, LayerParts
from rhea.models.native.trust import available
from rhea.models.packed import PackedHead, PackedLinear, can_pack, release
from rhea.models.visibility import Visibility, document_starts, document_visibility


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config.dim, config.ffn_dim)

    def forward(
        self, x_BTD: Tensor, rotation: Rotary, visibility: Visibility, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        """Return the residual stream after this layer."""
        attended = self.attention_norm.feed(self.attention, x_BTD, rotation, visibility, cache, layer)
        x_BTD = x_BTD + F.dropout(attended, self.dropout, self.training)
        return x_BTD + F.dropout(self.mlp_norm.feed(self.mlp, x_BTD), self.dropout, self.training)

    def parts(self, x_BTD: Tensor) -> LayerParts | None:
        """Return what an operator of our own needs in place of ``forward``; None if it can't serve x."""
        attention, mlp, dtype = self.attention, self.mlp, x_BTD.dtype
        matrices = []
        for product in (*(attention.packed or ()), *(mlp.packed or ())):
            panels = product.panels(x_BTD) if isinstance(product, PackedLinear) else None
            if panels is None:
                return None
            matrices.append(panels)
        norms = []
        for norm in (self.attention_norm, self.mlp_norm, attention.q_norm, attention.k_norm):
            scale = None if norm is None else norm.weight
            if scale is not None and scale.dtype != dtype:
                return None
            norms.append(None if norm is None or scale is None else (scale, norm.eps))
        return LayerParts(matrices, norms) if matrices else None


class Transformer(nn.Module):
    """Token ids in, logits out. Call ``init_weights`` (or load a checkpoint) before use."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens: nn.Embedding | None = nn.Embedding(config.vocab_size, config.dim, padding_idx=config.pad_id)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm: RMSNorm | None = RMSNorm(config.dim, config.norm_eps)
        self.lm_head: nn.Linear | None = nn.Linear(config.dim, config.vocab_size, bias=False)
        self._packed_head: PackedHead | None = None
        heads = config.num_heads, config.num_kv_heads, config.head_dim
        self._fused_layers = FusedLayers(*heads) if FusedLayers.serves(*heads) else None

    def pack(self, boundaries: Iterable[int] = (), *, alone: bool = False) -> Self:
        """Prepare for generation on a CPU: fuse and prepack the matrices; same numbers. On other devices: nothing.

        ``boundaries`` part the rows of the head into pieces, of which ``logits`` computes those it is asked for. Only
        forwards without gradients use the packed copies. Changed weights are noticed and packed anew; or ``alone``
        the copies stay, at no more memory than the originals, which can then no longer be trained, changed or saved.
        """
        for module in self.modules():
            if isinstance(module, Attention | FeedForward):
                module.pack(alone=alone)
        if self.lm_head is not None and can_pack(self.lm_head):
            self._packed_head = PackedHead(self.lm_head, boundaries)
            if alone:
                release([self.lm_head], self._packed_head.pieces.values())
        return self

    def hidden(
        self,
        token_ids_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        document_ids_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Return the states after the final norm, [B, T, D].

        Without ``embed_tokens`` the input is taken as states [B, T, D]. ``document_ids_BT``: runs of equal ids are
        packed documents, which never see one another; positions count from each document's start unless given.
        ``cache``: the tokens continue its rows and are added to it; not together with documents.
        """
        assert cache is None or document_ids_BT is None, "a cache holds one document per row"
        if torch.is_grad_enabled() and not token_ids_BT.is_meta and any(weight.is_meta for weight in self.parameters()):
            raise InputError("this model is packed for generation and can't be trained: load it by load_checkpoint")
        rows, num_tokens = token_ids_BT.shape[:2]
        if cache is not None:
            cached_positions_BT, visibility = cache.begin(num_tokens)
            positions_BT = cached_positions_BT if positions_BT is None else positions_BT
        elif document_ids_BT is not None:
            visibility = document_visibility(document_ids_BT)
        else:
            visibility = Visibility(causal=True)
        if positions_BT is None:
            positions_BT = torch.arange(num_tokens, device=token_ids_BT.device).expand(rows, num_tokens)
            if document_ids_BT is not None:
                positions_BT = positions_BT - document_starts(document_ids_BT)
        x_BTD = token_ids_BT if self.embed_tokens is None else self.embed_tokens(token_ids_BT)
        if self.embed_tokens is not None:
            x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        native = cache is not None and positions_BT.dtype == torch.int64 and self._uses_operators(x_BTD)
        angles = self.config.head_dim, self.config.rope_theta, compute_dtype(x_BTD)
        rotation = Rotary(*operators.rotary(positions_BT, *angles)) if native else rotary(positions_BT, *angles)
        fused_BTD = self._fused(x_BTD, rotation, cache) if native else None
        for index, layer in enumerate(self.layers if fused_BTD is None else ()):
            x_BTD = layer(x_BTD, rotation, visibility, cache, index)
        x_BTD = x_BTD if fused_BTD is None else fused_BTD
        if cache is not None:
            cache.finish()
        if native and self.norm is not None and self.norm.weight.dtype == x_BTD.dtype:
            return operators.norm(x_BTD, self.norm.weight, self.norm.eps)
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def _fused(self, x_BTD: Tensor, rotation: Rotary, cache: Cache | None) -> Tensor | None:
        """Return the states after all layers by one operator, where it can serve: see ``PlacedCache``."""
        places = cache.places() if isinstance(cache, PlacedCache) else None
        if places is None or self._fused_layers is None or (self.training and self.config.dropout):
            return None
        # All parts before the call: what the layers read empties the caches of the processor.
        parts = [known for layer in self.layers if (known := layer.parts(x_BTD)) is not None]
        if not parts or len(parts) != len(self.layers):
            return None
        if rotation.cos.dtype != x_BTD.dtype or places.blocks[0].dtype != x_BTD.dtype:
            return None
        return self._fused_layers(x_BTD, parts, rotation, *places)

    def _uses_operators(self, x_BTD: Tensor) -> bool:
        """Tell whether operators of our own take the place of torch's."""
        if self._packed_head is None or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return False
        return x_BTD.device.type == "cpu" and available(x_BTD.dtype)

    def logits(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return float32 logits [..., V] of the vocabulary rows [start, stop); the states themselves without a head."""
        if self.lm_head is None:
            return x
        if self._packed_head is not None and not torch.is_grad_enabled():
            return self._packed_head(x, start, self.config.vocab_size if stop is None else stop)
        return F.linear(x, self.lm_head.weight[start:stop]).float()

    def forward(
        self,
        token_ids_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        document_ids_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Return the logits of every token, [B, T, V]; see ``hidden``."""
        x_BTD = self.hidden(token_ids_BT, positions_BT=positions_BT, document_ids_BT=document_ids_BT, cache=cache)
        return self.logits(x_BTD)

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> None:
        """Draw every matrix from normal(0, init_std), zero the pad row, set norms to 1; the seed decides all values."""
        for parameter in self.parameters():
            if parameter.is_meta:
                raise InputError("init_weights: the model is on the meta device; call to_empty(device=...) first")
        device = next(self.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, self.config.init_std, generator=generator)
        if self.embed_tokens is not None and self.config.pad_id is not None:
            self.embed_tokens.weight[self.config.pad_id] = 0.0
