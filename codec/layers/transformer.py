"""Transformer over frames, causal or bidirectional, with a sliding window."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.layers.attention import attend, rotate, rotations, within
from codec.layers.base import Context, Layer
from codec.layers.linear import Linear
from codec.layers.streaming import NotStreamable, State, StreamingLayer

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys and values [B, H, F, D]


class TransformerLayer(nn.Module):
    """Attention and two linear maps of frames `[B, F, C]`, each normalized first and scaled per channel."""

    def __init__(self, channels: int, num_heads: int, hidden: int, layer_scale: float):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(channels)
        self.qkv = Linear(channels, 3 * channels, bias=False)
        self.out = Linear(channels, channels, bias=False)
        self.attention_scale = nn.Parameter(torch.full((channels,), layer_scale))
        self.mlp_norm = nn.LayerNorm(channels)
        self.expand = Linear(channels, hidden, bias=False)
        self.project = Linear(hidden, channels, bias=False)
        self.mlp_scale = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        """Add both outputs to `[B, F, C]`."""
        heads = self.qkv(self.attention_norm(x)).unflatten(2, (3, self.num_heads, -1))
        queries, keys, values = heads.transpose(1, 3).unbind(2)
        mixed = attention(queries, keys, values).transpose(1, 2).flatten(2)
        x = x + self.out(mixed) * self.attention_scale
        return x + self.project(functional.gelu(self.expand(self.mlp_norm(x)))) * self.mlp_scale


class Transformer(Layer):
    """Transformer layers on frames `[B, C, F] -> [B, C, F]`, as in Mimi (arXiv 2410.00037, §3.3.1).

    Pre-normalization, rotary positions of period `2π * rotary_base^(i / D)`, no biases, GELU, and a learned
    factor per channel of initially `layer_scale` (LayerScale, arXiv 2103.17239). A frame attends to itself
    and the `window - 1` frames before it, and after it unless `causal`. The linear maps have
    `expansion * channels` hidden channels. Raises ValueError for sizes below 1, a number of heads that does
    not divide the channels, and an odd number of channels per head, which cannot be rotated in pairs.
    """

    masked = True

    def __init__(
        self,
        channels: int,
        *,
        num_layers: int = 8,
        num_heads: int = 8,
        window: int = 250,
        expansion: float = 4.0,
        layer_scale: float = 0.01,
        rotary_base: float = 10000.0,
        causal: bool = True,
    ):
        super().__init__()
        hidden = round(expansion * channels)
        if min(num_layers, num_heads, window, hidden) < 1 or not rotary_base > 0:
            raise ValueError(
                "num_layers, num_heads, window and expansion * channels must be at least 1 and rotary_base "
                f"above 0, got {num_layers}, {num_heads}, {window}, {hidden} and {rotary_base}"
            )
        if channels % (2 * num_heads):
            raise ValueError(
                f"num_heads must divide the {channels} channels into heads of an even number of channels, "
                f"got {num_heads}: {channels / num_heads:g} channels per head"
            )
        self.window, self.causal, self.rotary_base = window, causal, rotary_base
        self.channels, self.head_channels = channels, channels // num_heads
        self.layers = nn.ModuleList(
            TransformerLayer(channels, num_heads, hidden, layer_scale) for _ in range(num_layers)
        )

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map `[B, C, F]`; `valid` `[B, F]` is False for padding, to which no frame attends."""
        positions = torch.arange(x.shape[2], device=x.device)
        turns = rotations(positions, self.head_channels, self.rotary_base)

        def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            queries, keys = rotate(queries, *turns), rotate(keys, *turns)
            return attend(queries, keys, values, self.window, self.causal, valid)

        x = x.transpose(1, 2)
        for layer in self.layers:
            x = layer(x, attention)
        return x.transpose(1, 2)

    @property
    def context(self) -> Context:
        """Frames within the windows of all layers."""
        reach = len(self.layers) * (self.window - 1)
        return Context(reach, 0 if self.causal else reach)

    def stream(self) -> StreamingLayer:
        """Attention to cached keys and values; NotStreamable if bidirectional."""
        if not self.causal:
            raise NotStreamable(
                f"a bidirectional transformer would wait for {self.context.after} frames: set causal=true"
            )
        return CachedTransformer(self)


class CachedTransformer(StreamingLayer):
    """Causal `Transformer` with the keys and values of the last `window - 1` frames of each layer as state.

    The state is the number of frames so far, int64 `[1]`, and a cache `[B, window - 1, 2 * C]` per layer.
    Keys are cached rotated.
    """

    def __init__(self, transformer: Transformer):
        super().__init__()
        self.transformer = copy.deepcopy(transformer).requires_grad_(False)
        self.kept = transformer.window - 1

    def initial(self, batch: int) -> State:
        """No frames, and empty caches."""
        parameter, width = next(self.transformer.parameters()), 2 * self.transformer.channels
        caches = [parameter.new_zeros(batch, self.kept, width) for _ in self.transformer.layers]
        return [torch.zeros(1, dtype=torch.int64, device=parameter.device), *caches]

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Map the frames of a chunk `[B, F, C]`."""
        frames = x.shape[1]
        if frames == 0:
            return x, state
        places, size = torch.arange(frames, device=x.device), self.transformer.head_channels
        turns = rotations(state[0] + places, size, self.transformer.rotary_base)
        sources = torch.arange(-self.kept, frames, device=x.device)
        mask = within(sources - places[:, None], self.transformer.window, True) & (sources >= -state[0])
        new_state = [state[0] + frames]

        def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            queries, keys = rotate(queries, *turns), rotate(keys, *turns)
            fresh = torch.stack([keys, values], 1).permute(0, 3, 1, 2, 4).flatten(2)  # [B, F, 2 * C]
            cache = torch.cat([state[len(new_state)], fresh], 1)
            new_state.append(cache[:, frames:])
            keys, values = cache.unflatten(2, (2, -1, size)).transpose(1, 3).unbind(2)
            return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)

        for layer in self.transformer.layers:
            x = layer(x, attention)
        return x, new_state
