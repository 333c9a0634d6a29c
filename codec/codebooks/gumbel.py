"""Codes by attention over a codebook, with Gumbel noise in training (NWT's memcodes)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.codebooks.base import Codebook
from codec.codebooks.kmeans import kmeans
from codec.codebooks.normalization import Standardize
from codec.codebooks.regularized import lacking_entropy


class GumbelCodebook(Codebook):
    """Hard attention of inputs `[N, D]` over `codebook_size` learned memories (NWT, arXiv 2106.04283).

    Training draws one memory by the Gumbel-softmax at `temperature`, hard in the forward pass and soft in the
    gradient, which reaches inputs and memories. Without a generator the most probable memory is taken. Two
    losses keep the codes in use. "diversity" is the entropy deficit of the mean softmax, as a share of the
    maximum (wav2vec 2.0, arXiv 2006.11477, eq. 4). "commitment" is the distance of the standardized inputs to
    the chosen keys: scores are cosines times a learned sharpness, and without the loss an encoder drifts to a
    single direction. `Grouped` gives several heads. Memories start as the k-means centroids of the inputs'
    directions, and the sharpness at a value for which the error of a draw is about twice the smallest.
    """

    straight_through_cascade = False
    tabular = True

    def __init__(
        self, dim: int, codebook_size: int = 1024, temperature: float = 1.0, kmeans_iterations: int = 10
    ):
        super().__init__()
        if codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {codebook_size}")
        if not temperature > 0 or kmeans_iterations < 0:
            values = f"{temperature} and {kmeans_iterations}"
            raise ValueError(f"temperature must be positive and kmeans_iterations at least 0, got {values}")
        self.codebook_size = codebook_size
        self.temperature = temperature
        self.kmeans_iterations = kmeans_iterations
        self.pool_frames = 16 * codebook_size
        self.memories = nn.Parameter(functional.normalize(torch.randn(codebook_size, dim), dim=1))
        self.to_keys = nn.Linear(dim, dim, bias=False)
        self.to_values = nn.Linear(dim, dim)
        self.log_sharpness = nn.Parameter(torch.tensor(10.0).log())
        self.standardize = Standardize(dim)
        self.register_buffer("initialised", torch.tensor(False))

    def initialise(self, pool: Tensor) -> None:
        """Initialize memories, values and sharpness by a pool `[N, D]`."""
        self.standardize.fit(pool)
        self.standardize.deviation.mul_(self.standardize(pool).norm(dim=1).mean())  # now of length 1
        directions = functional.normalize(self.standardize(pool), dim=1)
        centroids = kmeans(directions, self.codebook_size, self.kmeans_iterations)
        self.memories.copy_(functional.normalize(centroids, dim=1))
        self.to_keys.weight.copy_(torch.eye(pool.shape[1]))
        self.to_values.weight.copy_(torch.diag(self.standardize.deviation))
        self.to_values.bias.copy_(self.standardize.mean)
        error = 1 - (directions @ self.memories.T).amax(1).mean()
        self.log_sharpness.copy_((pool.shape[1] / 2 / error.clamp(min=1e-3)).log())
        self.initialised.fill_(True)

    def keys(self) -> Tensor:
        """Unit vectors `[K, D]` for comparison with inputs."""
        return functional.normalize(self.to_keys(self.memories), dim=1)

    def logits(self, standard: Tensor, keys: Tensor) -> Tensor:
        """Scores `[N, K]` of standardized inputs `[N, D]`."""
        return self.log_sharpness.exp() * (functional.normalize(standard, dim=1) @ keys.T)

    def encode(self, inputs: Tensor) -> Tensor:
        """Most probable codes `[N]` of inputs `[N, D]`."""
        return self.logits(self.standardize(inputs), self.keys()).argmax(1)

    def table(self) -> Tensor:
        """All values `[K, D]`."""
        return self.to_values(self.memories)

    def sources(self) -> list[Tensor]:
        """Tensors from which `table` is computed."""
        return [self.memories, self.to_values.weight, self.to_values.bias]

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]`, commitment per input `[N]` and the scalar diversity loss."""
        standard, keys = self.standardize(inputs), self.keys()
        logits = self.logits(standard, keys)
        losses = {"diversity": lacking_entropy(logits.softmax(1), used, self.training)}
        if generator is not None:
            noise = torch.empty_like(logits).exponential_(generator=generator).log()
            logits = (logits - noise) / self.temperature
        codes = logits.detach().argmax(1)
        losses["commitment"] = (standard - functional.embedding(codes, keys.detach())).square().mean(1)
        soft = logits.softmax(1)
        table = self.table()
        # Exactly the chosen value, with the gradient of the soft mixture.
        mixture = (soft - soft.detach()) @ table.detach()
        return functional.embedding(codes, table) + mixture, codes, losses
