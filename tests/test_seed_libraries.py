"""With the vectors of vector-quantize-pytorch or quantizer-pytorch our yamls give their codes and latents."""

from typing import Any

import pytest
import torch
from composed import config
from torch import Tensor

from codec.codebooks.ema import EMACodebook
from codec.config import build
from codec.metrics.signal import codebook_usage
from codec.quantizers.base import Quantizer

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.parametrize("latents", [torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))]),
]


@pytest.fixture
def vqp() -> Any:
    return pytest.importorskip("vector_quantize_pytorch")


@pytest.fixture
def qp() -> Any:
    return pytest.importorskip("quantizer_pytorch")


def ours(name: str, vectors: Any, *options: str, dim: int = 8) -> Quantizer:
    """A quantizer of configs/quantizer with the vectors of theirs, one tensor for each codebook."""
    node = config(f"quantizer={name}", f"autoencoder.latent_dim={dim}", *options)["quantizer"]
    quantizer = build(node).eval()
    books = [part for part in quantizer.modules() if isinstance(part, EMACodebook)]
    for book, given in zip(books, vectors, strict=True):
        book.vectors.copy_(given.detach())
    return quantizer


def check(quantizer: Quantizer, latents: Tensor, codes: Tensor, decoded: Tensor, **options: Tensor) -> None:
    quantized = quantizer(latents, **options)
    assert torch.equal(quantized.codes, codes)
    torch.testing.assert_close(quantized.latents, decoded.detach())
    if not options:
        torch.testing.assert_close(quantizer.decode(codes.long()), decoded.detach())


def test_residual_vq(vqp, latents):
    theirs = vqp.ResidualVQ(dim=8, num_quantizers=3, codebook_size=16).eval()
    decoded, codes, _, every = theirs(latents.mT.contiguous(), return_all_codes=True)
    vectors = [layer.codebook for layer in theirs.layers]
    options = ["quantizer.num_quantizers=3", "quantizer.codebook.codebook_size=16"]
    quantizer = ours("rvq", vectors, *options)
    check(quantizer, latents, codes.mT, decoded.mT)
    stages = zip(quantizer.stages, codes.unbind(2), strict=True)  # type: ignore[arg-type]
    torch.testing.assert_close(torch.stack([stage.lookup(code) for stage, code in stages]), every)


def test_grouped_residual_vq(vqp, latents):
    theirs = vqp.GroupedResidualVQ(dim=8, num_quantizers=3, groups=2, codebook_size=16).eval()
    decoded, codes, _ = theirs(latents.mT.contiguous())
    vectors = [layer.codebook for group in theirs.rvqs for layer in group.layers]
    options = ["quantizer.quantizer.num_quantizers=3", "quantizer.quantizer.codebook.codebook_size=16"]
    check(
        ours("grouped_rvq", vectors, *options), latents, codes.permute(1, 3, 0, 2).flatten(1, 2), decoded.mT
    )


@pytest.mark.parametrize("name", ["vq", "vq_cosine"])
def test_one_codebook_with_a_mask(vqp, latents, name):
    theirs = vqp.VectorQuantize(dim=8, codebook_size=16, use_cosine_sim=name == "vq_cosine").eval()
    quantizer = ours(name, [theirs.codebook], "quantizer.codebook.codebook_size=16")
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    for options in ({}, {"mask": mask}):
        decoded, codes, _ = theirs(latents.mT.contiguous(), **options)
        check(quantizer, latents, codes[:, None], decoded.mT, **options)


@pytest.mark.parametrize("separate", [True, False])
def test_heads(vqp, latents, separate):
    options = {"heads": 4, "codebook_dim": 2, "separate_codebook_per_head": separate}
    theirs = vqp.VectorQuantize(dim=8, codebook_size=16, **options).eval()
    theirs.project_in = theirs.project_out = torch.nn.Identity()
    decoded, codes, _ = theirs(latents.mT.contiguous())
    vectors = theirs.codebook.view(-1, 16, 2)
    sizes = ["quantizer.num_groups=4", "quantizer.quantizer.codebook.codebook_size=16"]
    quantizer = ours("product_vq", vectors, *sizes, f"quantizer.shared={not separate}")
    check(quantizer, latents, codes.mT, decoded.mT)


def test_grids_and_maps(vqp, latents):
    few = latents[:, :4]
    decoded, codes = vqp.FSQ(levels=[8, 5, 5, 5]).eval()(few.mT.contiguous())
    check(
        ours("fsq", [], "quantizer.codebook.levels=[8,5,5,5]", dim=4), few, codes[:, None].long(), decoded.mT
    )
    theirs = vqp.SimVQ(dim=8, codebook_size=16).eval()
    decoded, codes, _ = theirs(latents.mT.contiguous())
    quantizer = ours("simvq", [], "quantizer.codebook.codebook_size=16")
    (stage,) = quantizer.stages  # type: ignore[misc]
    stage.vectors.copy_(theirs.frozen_codebook)
    stage.map.weight.data.copy_(theirs.code_transform.weight)
    check(quantizer, latents, codes[:, None], decoded.mT)


def test_signs(vqp, latents):
    few = latents[:, :4]
    result = vqp.LFQ(codebook_size=16, dim=4).eval()(few.mT.contiguous())
    quantizer = ours("lfq", [], "quantizer.codebook.codebook_bits=4", dim=4)
    (stage,) = quantizer.stages  # type: ignore[misc]
    for projection in (stage.in_proj, stage.out_proj):
        projection.weight.data.copy_(torch.eye(4))
        projection.bias.data.zero_()
    turned = sum(
        ((result.indices >> bit) & 1) << (3 - bit) for bit in range(4)
    )  # their first bit is the highest
    check(quantizer, few, turned[:, None], result.quantized.mT)


def test_quantizer_1d_and_what_it_tells(qp, latents):
    theirs = qp.Quantizer1d(channels=8, num_groups=2, codebook_size=16, num_residuals=3).eval()
    decoded, info = theirs(latents)
    options = ["quantizer.quantizer.num_quantizers=3", "quantizer.quantizer.codebook.codebook_size=16"]
    vectors = theirs.quantize.quantizers[0].codebooks
    quantizer = ours("grouped_rvq", vectors, *options, "+quantizer.quantizer.shared=true")
    codes = info["indices"].permute(0, 3, 1, 2).flatten(1, 2)  # [B, G, F, R], ours stage by stage
    check(quantizer, latents, codes, decoded)
    torch.testing.assert_close(theirs.from_ids(info["indices"]), decoded)
    torch.testing.assert_close(quantizer(latents).losses["commitment"], 3 * info["loss"].detach())
    perplexity = codebook_usage(codes, quantizer.codebook_sizes)["perplexity"]
    torch.testing.assert_close(perplexity.view(3, 2).T.flatten().float(), info["perplexity"])


def test_channelwise_and_blockwise(qp, latents):
    theirs = qp.QuantizerChannelwise1d(channels=8, split_size=4, num_groups=1, codebook_size=16).eval()
    decoded, info = theirs(latents)
    size = "quantizer.quantizer.quantizer.codebook.codebook_size=16"
    vectors = theirs.quantize.quantizers[0].codebooks
    quantizer = ours("channelwise_vq", vectors, "quantizer.patch_length=4", size)
    check(quantizer, latents, info["indices"], decoded)
    options = {"num_groups": 4, "codebook_size": 16, "num_residuals": 2}
    theirs = qp.QuantizerBlock1d(channels=8, split_size=2, **options).eval()
    decoded, info = theirs(latents)
    shared = ["quantizer.quantizer.num_groups=4", "quantizer.quantizer.shared=true"]
    vectors = theirs.quantize.quantizers[0].codebooks
    quantizer = ours("blockwise_vq", vectors, *shared, "+quantizer.quantizer.quantizer.shared=true", size)
    codes = info["indices"].unflatten(1, (4, 6)).permute(0, 3, 1, 2).flatten(1, 2)
    check(quantizer, latents, codes, decoded)
