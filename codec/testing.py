"""Contract tests of parts, for this package and for others: each raises AssertionError with the reason.

A package tests its parts with `check_quantizer(MyQuantizer(16))` and the like.
"""

from __future__ import annotations

import math
import pickle
import posixpath
from collections.abc import Callable
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from codec.audio.synthetic import speech
from codec.autoencoders.base import Autoencoder
from codec.codebooks.base import Codebook
from codec.data.scan import scan
from codec.discriminators.base import Discriminator
from codec.layers.base import Context
from codec.layers.streaming import NotStreamable
from codec.losses.base import Forward
from codec.losses.objective import Objective, names_of
from codec.metrics.base import Metric
from codec.quantizers.base import Bottleneck
from codec.quantizers.residual import Residual
from codec.system.sources import DataSource, mount, mounted

BATCH, FRAMES = 3, 24
CLOSE = 1e-4  # of the largest value; float32 sums of another order


def check_codebook(codebook: Codebook, dim: int) -> None:
    """Check one stage for inputs `[N, D]`, alone and in a residual cascade of one."""
    if codebook.needs_pool:
        with torch.no_grad():
            codebook.initialise(noise(codebook.pool_frames, dim))
    inputs = noise(64, dim)
    codes = codebook.eval().encode(inputs)
    require(codes.shape == (64,) and codes.dtype == torch.int64, "encode gives one int64 code an input")
    require(int(codes.min()) >= 0 and int(codes.max()) < codebook.codebook_size, "codes below codebook_size")
    vectors, codes_of_forward, losses = codebook(inputs, torch.ones(64, dtype=torch.bool))
    require(torch.equal(codes, codes_of_forward), "forward without a generator gives the codes of encode")
    require(torch.equal(vectors, codebook.lookup(codes)), "forward gives the vectors of lookup, bit for bit")
    require(all(loss.shape in ((64,), ()) for loss in losses.values()), "a loss is [N] or a scalar")
    if codebook.tabular:
        table = codebook.table()
        require(torch.equal(table[codes], codebook.lookup(codes)), "lookup takes rows of the table")
        require(bool(codebook.sources()), "a table is computed from sources")
    check_quantizer(
        Residual(dim, lambda _: codebook, num_quantizers=1, loss_weights=dict.fromkeys(losses, 1.0))
    )


@torch.no_grad()
def check_quantizer(quantizer: Bottleneck) -> None:
    """Check latents `[B, D, F * stride]` to codes, or continuous frames, and back, and loss weights."""
    if size := quantizer.pool_size():
        quantizer.initialise(noise(size, quantizer.dim))
    require(quantizer.pool_size() == 0, "pool_size is 0 after `initialise`")
    quantizer.eval().check_loss_weights()
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    latents = noise(BATCH, quantizer.dim, FRAMES * quantizer.stride)
    if quantizer.codebook_sizes:
        check_codes(quantizer, latents)
    else:
        check_continuous(quantizer, latents)
    require(same_state(state, quantizer), "forward, encode and decode change no state")


def check_codes(quantizer: Bottleneck, latents: Tensor) -> None:
    """Check codes: shape, range, exact decoding, prefixes, batches and masks."""
    quantized, codes = quantizer(latents), quantizer.encode(latents)
    stages, sizes = quantizer.num_quantizers, quantizer.codebook_sizes
    shape = (BATCH, stages, FRAMES)
    require(codes.shape == shape and codes.dtype == torch.int64, "codes are int64 [B, K, F]")
    require(torch.equal(codes, quantized.codes), "forward gives the codes of encode")
    most = codes.amax((0, 2)).tolist()
    in_range = int(codes.min()) >= 0 and all(a < b for a, b in zip(most, sizes, strict=True))
    require(in_range, "codes in range")
    require(torch.equal(quantizer.decode(codes), quantized.latents), "decode gives the quantized latents")
    require(torch.equal(quantizer.encode(latents, 1), codes[:, :1]), "codes of fewer stages are a prefix")
    alone = quantizer.encode(latents[1:2])
    require(torch.equal(alone, codes[1:2]), "codes do not depend on the batch")
    mask = torch.ones(BATCH, FRAMES, dtype=torch.bool)
    mask[0, 5:] = False
    masked = quantizer(latents, mask=mask)
    require(bool((masked.codes[0, :, 5:] == -1).all()), "masked frames have code -1")
    require(not masked.latents[0, :, 5 * quantizer.stride :].any(), "masked frames have zero latents")
    require(torch.equal(masked.codes[1:], codes[1:]), "a mask changes no other example")


def check_continuous(bottleneck: Bottleneck, latents: Tensor) -> None:
    """Check continuous frames: shape, determinism, decoding, batches."""
    quantized, frames = bottleneck(latents), bottleneck.encode(latents)
    shape = (BATCH, bottleneck.latent_dim, FRAMES)
    require(frames.shape == shape and frames.dtype == torch.float32, "frames are float32 [B, latent_dim, F]")
    require(quantized.codes.shape == (BATCH, 0, FRAMES), "forward gives empty codes")
    require(torch.equal(bottleneck.encode(latents), frames), "encode draws no sample")
    require(close(bottleneck.decode(frames), quantized.latents), "decode gives the latents of forward")
    require(close(bottleneck.encode(latents[1:2]), frames[1:2]), "frames do not depend on the batch")


def check_autoencoder(autoencoder: Autoencoder) -> None:
    """Check audio to latents and back: shapes, ragged batches, contexts, streaming or its refusal."""
    autoencoder.eval()
    hop, channels, dim = autoencoder.hop_length, autoencoder.audio_channels, autoencoder.latent_dim
    with torch.inference_mode():
        audio = noise(BATCH, channels, FRAMES * hop)
        latents = autoencoder.encode(audio)
        require(latents.shape == (BATCH, dim, FRAMES), "encode gives [B, D, T / hop_length]")
        require(autoencoder.decode(latents).shape == audio.shape, "decode gives [B, C, F * hop_length]")
        lengths = torch.tensor([FRAMES * hop, 7 * hop, hop])
        padding = torch.arange(FRAMES * hop) >= lengths[:, None, None]
        ragged = autoencoder.encode_ragged(audio.masked_fill(padding, 0), lengths)
        for one, signal, length in zip(ragged, audio, lengths.tolist(), strict=True):
            single = autoencoder.encode(signal[None, :, :length])[0]
            require(close(one[:, : length // hop], single), "ragged batches give the latents of each signal")
        check_contexts(autoencoder)
        check_streaming(autoencoder, audio, latents)


def check_contexts(autoencoder: Autoencoder) -> None:
    """Change one hop or latent; outputs outside the contexts stay as they were."""
    hop, channels, dim = autoencoder.hop_length, autoencoder.audio_channels, autoencoder.latent_dim
    check_reach(autoencoder.encode, channels, hop, 1, autoencoder.encoder_context, "encoder_context")
    check_reach(autoencoder.decode, dim, 1, hop, autoencoder.decoder_context, "decoder_context")


def check_reach(
    network: Callable[[Tensor], Tensor], channels: int, size: int, out: int, context: Context, name: str
) -> None:
    """Change inputs of `size` samples, and compare outputs of `out` samples outside each bounded side."""
    past, future = context
    room = 2 + max(-(-(past or 0) // size), -(-(future or 0) // size))
    inputs = noise(1, channels, (2 * room + 1) * size)
    perturbed = inputs.clone()
    perturbed[..., room * size : (room + 1) * size] += 1
    old, new = network(inputs), network(perturbed)
    if future is not None:
        stop = (room - -(-future // size)) * out
        require(close(new[..., :stop], old[..., :stop]), f"{name}: nothing earlier than `after` changes")
    if past is not None:
        start = (room + 1 + -(-past // size)) * out
        require(close(new[..., start:], old[..., start:]), f"{name}: nothing later than `before` changes")


def check_streaming(autoencoder: Autoencoder, audio: Tensor, latents: Tensor) -> None:
    """Stream in chunks of several sizes, or expect NotStreamable."""
    odd = autoencoder.hop_length // 2 + 1  # samples; chunks need not hold whole hops
    parts = (
        (autoencoder.streaming_encoder, audio, latents, (odd, 5 * odd)),
        (autoencoder.streaming_decoder, latents, None, (1, 7)),
    )
    for make, inputs, expected, sizes in parts:
        try:
            step = make()
        except NotStreamable:
            continue
        expected = autoencoder.decode(latents) if expected is None else expected
        for size in (*sizes, inputs.shape[2]):
            state, outputs = step.initial(len(inputs)), []
            chunks = inputs.transpose(1, 2).split(size, 1)
            for number, chunk in enumerate(chunks):
                output, state = step(chunk, state, final=number == len(chunks) - 1)
                outputs.append(output)
            streamed = torch.cat(outputs, 1).transpose(1, 2)
            require(close(streamed, expected), f"chunks of {size} give the output of the whole signal")


def check_discriminator(discriminator: Discriminator, audio_channels: int = 1) -> None:
    """Check outputs of audio of any length, gradients to the audio, and independence of the batch."""
    discriminator.eval()
    for length in (1, 100, 4000):
        audio = noise(2, audio_channels, length).requires_grad_()
        outputs = discriminator(audio)
        require(len(outputs) > 0, "at least one output")
        require(all(len(one.logits) == 2 for one in outputs), "logits have the batch first")
        total = torch.stack([one.logits.sum() for one in outputs]).sum()
        gradient = torch.autograd.grad(total, audio, allow_unused=True)[0] if total.requires_grad else None
        require(gradient is not None and bool(gradient.isfinite().all()), "the audio has a finite gradient")
        with torch.no_grad():
            single = discriminator(audio[:1])
        independent = all(close(a.logits, b.logits[:1]) for a, b in zip(single, outputs, strict=True))
        require(independent, "an output does not depend on the batch")


def check_loss(loss: nn.Module, audio_channels: int = 1, outputs: Forward | None = None) -> None:
    """Check a loss: finite scalars, and with audio alone smallest for equal audio, with a gradient.

    A loss of latents, codes or a teacher needs `outputs`, one forward pass of a codec.
    """
    names = names_of("loss", loss)
    objective = Objective({"loss": loss}, dict.fromkeys(names, 1.0))
    if outputs is not None:
        scalars = objective.reconstruction_losses(outputs)
        finite = all(one.ndim == 0 and bool(one.isfinite()) for one in scalars.values())
        require(finite, "a loss is a finite scalar")
        return
    target = noise(2, audio_channels, 8000) / 4
    estimate = (target + noise(2, audio_channels, 8000, seed=1) / 10).requires_grad_()
    draws = torch.Generator()
    apart, equal = (
        objective.reconstruction_losses(Forward(target, target, one, generator=draws.manual_seed(0)))
        for one in (estimate, target)
    )
    finite = all(one.ndim == 0 and bool(one.isfinite()) for one in apart.values())
    require(finite, "a loss is a finite scalar")
    smaller = all(bool(equal[name] < apart[name]) for name in names)
    require(smaller, "equal audio has a smaller loss than different audio")
    (gradient,) = torch.autograd.grad(objective.total(apart), estimate)
    require(bool(gradient.isfinite().all()) and bool(gradient.any()), "the estimate has a finite gradient")


def check_metric(metric: Metric) -> None:
    """Check a metric's statements and its scores of two seconds of speech, with noise and without.

    The direction is checked if it `needs_reference`. ImportError without the metric's package.
    """
    require(metric.name.isidentifier(), "the name is an identifier")
    require(metric.meaning.endswith("."), "the meaning is a sentence")
    rate = metric.rate or 16000
    reference = speech(2.0, rate, np.random.default_rng(0))
    noisy = reference + np.float32(0.1) * noise(len(reference)).numpy()
    apart, equal = (score_of(metric, estimate, reference, rate) for estimate in (noisy, reference))
    require(math.isfinite(apart) and math.isfinite(equal), "a score is a finite number")
    require(score_of(metric, noisy, reference, rate) == apart, "a score draws no random numbers")
    if metric.needs_reference:
        better, word = (equal < apart, "lower") if metric.lower else (equal > apart, "higher")
        require(better, f"equal audio has a {word} score than different audio")


def score_of(metric: Metric, estimate: np.ndarray, reference: np.ndarray, rate: int) -> float:
    """Score one signal `[T]`; a metric of tensors scores it in a batch with another."""
    copies = estimate.copy(), reference.copy()
    if metric.tensors:
        both = [torch.from_numpy(np.stack([one, reference]))[:, None] for one in copies]
        scores = metric.score(*both, rate)
        require(scores.shape == (2,), "a metric of tensors gives one score a signal, [B]")
        require(close(metric.score(*(one[:1] for one in both), rate), scores[:1]), "signals are scored alone")
        return float(scores[0])
    score = metric.score(copies[0], copies[1] if metric.needs_reference else None, rate)
    equal = np.array_equal(copies[0], estimate) and np.array_equal(copies[1], reference)
    require(equal, "a metric does not change its inputs")
    return float(score)


def check_source(source: DataSource) -> None:
    """Check a source of recordings: ids, sizes, independent files, a copy for other processes, audio."""
    sizes = dict(source.sizes())
    require(bool(sizes), "there is a recording")
    for id, size in sizes.items():
        require(posixpath.normpath(id) == id and id[0] not in "/.", "an id is a relative path")
        with source.open(id) as one, source.open(id) as other:
            content = one.read()
            require(len(content) == size, "sizes gives the bytes of a recording")
            one.seek(size // 2)
            require(
                other.read(size // 3) == content[: size // 3], "files that are open do not move each other"
            )
            require(one.read() == content[size // 2 :], "a file is read from any byte")
    with TemporaryDirectory() as folder:
        index = scan(mount(source), cache_dir=folder, progress=False, require_usable=False)
    del mounted[source.name]
    faults = "; ".join(f"{file.path}: {file.problem}" for file in index.problems)
    require(bool(index.files) and not faults, f"recordings are audio, {faults or 'with extensions of it'}")
    try:
        copy = pickle.loads(pickle.dumps(source))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"broken contract: a source is pickled for other processes: {error}") from error
    require(dict(copy.sizes()) == sizes, "a pickled copy has the same recordings")


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers of a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(one: Tensor, other: Tensor) -> bool:
    """Equality up to the order of float32 sums."""
    if one.shape != other.shape or not one.numel():
        return one.shape == other.shape
    return bool((one - other).abs().max() <= CLOSE * other.abs().max().clamp(min=1e-3))


def same_state(before: dict[str, Tensor], module: nn.Module) -> bool:
    """Equality of a module's state with an older copy."""
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def require(holds: bool, rule: str) -> None:
    """Raise AssertionError with the rule unless it holds."""
    if not holds:
        raise AssertionError(f"broken contract: {rule}")
