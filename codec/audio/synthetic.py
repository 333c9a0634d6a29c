"""Synthetic speech-like and music-like audio, for a first run without a download.

Speech is a source–filter model: glottal pulses (Rosenberg 1971) with jitter and shimmer, and fricative
noise, through moving formants (vowels of Peterson and Barney 1952). Music is plucked strings (Karplus
and Strong 1983) with chords, bass and arpeggios, and drums. All randomness comes from a seed: the same call
writes the same bytes on the same machine and version of numpy.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from codec.audio.writing import write_wav
from codec.system.files import FileError, folder_whole
from codec.system.progress import progress_bar

CLIP_SECONDS = 5.0
FRAME = 0.005  # seconds; period of the vocal tract's updates

# First three formants (Hz) of men's vowels i ɪ ɛ æ ɑ ɔ ʊ u ʌ ɝ (Peterson and Barney 1952, table II).
F1 = [270, 390, 530, 660, 730, 570, 440, 300, 640, 490]
F2 = [2290, 1990, 1840, 1720, 1090, 840, 1020, 870, 1190, 1350]
F3 = [3010, 2550, 2480, 2410, 2440, 2410, 2240, 2240, 2390, 1690]
VOWELS = np.array([F1, F2, F3], dtype=float).T
HIGH_FORMANTS = np.arange(3500.0, 12000.0, 1000.0)  # Hz; those of a uniform tube, nearly constant
BANDWIDTHS = np.concatenate([[70.0, 100.0, 140.0], 0.07 * HIGH_FORMANTS])  # Hz

# Center (Hz), width (Hz) and level of the noise of s, ʃ, f and x.
FRICATIVES = np.array([[6500, 1800, 0.5], [3300, 1200, 0.5], [5500, 4000, 0.15], [1700, 900, 0.3]])

PROGRESSIONS = ((0, 4, 5, 3), (5, 3, 0, 4), (0, 5, 3, 4), (0, 3, 4, 4), (1, 4, 0, 5))  # scale degrees
MAJOR = (0, 2, 4, 5, 7, 9, 11)  # semitones above the tonic


def write_synthetic_folder(
    root: str | os.PathLike[str], seconds: float = 600.0, sample_rate: int = 24000, seed: int = 0
) -> None:
    """Fill `root` with about `seconds` of audio as 5 s wavs: `music_0001.wav`, `speech_0001.wav`, …

    A new folder is created atomically; existing files are kept. Raises `ValueError` for a duration or a rate
    that is not positive.
    """
    if not (seconds > 0 and sample_rate > 0):
        raise ValueError(f"seconds and sample_rate must be positive, got {seconds} and {sample_rate}")
    target = Path(root).expanduser()
    count = max(2, round(seconds / CLIP_SECONDS))
    names = [f"{'speech' if n % 2 == 0 else 'music'}_{n // 2 + 1:04d}.wav" for n in range(count)]

    def fill(folder: Path) -> None:
        missing = [number for number, name in enumerate(names) if not (target / name).exists()]
        for number in progress_bar(missing, "making synthetic audio", unit="file"):
            make = speech if number % 2 == 0 else music
            audio = make(CLIP_SECONDS, sample_rate, np.random.default_rng((seed, number)))
            write_wav(folder / names[number], audio[None], sample_rate)

    try:
        with folder_whole(target) as folder:
            fill(folder)
    except FileError:  # the folder exists, possibly created by another process in the meantime
        fill(target)


def speech(seconds: float, sample_rate: int, random: Generator) -> np.ndarray:
    """Babble of one voice, float32 `[T]`, peak below 1: words of random syllables, with pauses."""
    pitch = float(np.exp(random.uniform(np.log(85), np.log(260))))
    utterance = articulate(seconds, pitch, random)
    samples = round(seconds * sample_rate)
    position = np.arange(samples) / (sample_rate * FRAME)
    frames = np.arange(len(utterance.pitch))
    voicing = np.interp(position, frames, utterance.voicing)
    breath = random.standard_normal(samples)
    pulses = glottal_pulses(np.interp(position, frames, utterance.pitch), sample_rate, random)
    hiss = random.standard_normal(samples) * np.interp(position, frames, utterance.frication)
    audio = vocal_tract(voicing * (pulses + 0.03 * breath), hiss, utterance, sample_rate)
    audio *= random.uniform(0.3, 0.9) / np.abs(audio).max()
    room = 10 ** (-72 / 20) * random.standard_normal(samples)
    return (audio + room).astype(np.float32)


@dataclass(frozen=True)
class Utterance:
    """Control of the voice per frame: `formants` `[F, 3]` and `pitch` `[F]` in Hz, levels `[F]` 0 to 1."""

    formants: np.ndarray
    pitch: np.ndarray
    voicing: np.ndarray
    frication: np.ndarray
    fricative: np.ndarray


def draw_sounds(seconds: float, random: Generator) -> np.ndarray:
    """Words of one to four syllables: a row (seconds, voicing, fricative or −1, vowel) for each sound."""
    sounds: list[tuple[float, float, int, int]] = []

    def add(shortest: float, longest: float, voicing: float, fricative: int, vowel: int) -> None:
        sounds.append((random.uniform(shortest, longest), voicing, fricative, vowel))

    add(0.03, 0.12, 0, -1, 0)
    while sum(sound[0] for sound in sounds) < seconds:
        vowel = 0
        for _ in range(random.integers(1, 5)):
            vowel, fricative = int(random.integers(len(VOWELS))), int(random.integers(len(FRICATIVES)))
            onset = random.random()
            if onset < 0.4:
                add(0.07, 0.15, 0, fricative, vowel)
            elif onset < 0.7:  # a stop: closure, then burst
                add(0.03, 0.06, 0, -1, vowel)
                add(0.008, 0.02, 0, fricative, vowel)
            add(0.08, 0.24, random.uniform(0.6, 1.0), -1, vowel)
            if random.random() < 0.25:  # a diphthong's end
                add(0.06, 0.14, 0.7, -1, int(random.integers(len(VOWELS))))
        shortest, longest = (0.12, 0.4) if random.random() < 0.4 else (0.01, 0.05)
        add(shortest, longest, 0, -1, vowel)
    return np.array(sounds)


def articulate(seconds: float, pitch: float, random: Generator) -> Utterance:
    """Draw the sounds and the transitions between them; `pitch` is the voice's mean in Hz."""
    lengths, voicing, fricative, vowel = draw_sounds(seconds, random).T
    time = np.arange(round(seconds / FRAME) + 1) * FRAME
    sound = np.minimum(np.searchsorted(np.cumsum(lengths), time, side="right"), len(lengths) - 1)
    # Higher voices have shorter vocal tracts, hence higher formants.
    tract = 1 + 0.18 * np.log2(pitch / 110) + random.uniform(-0.04, 0.04)
    knots = np.arange(0, seconds + 0.6, 0.3)
    melody = np.interp(time, knots, random.uniform(-3, 3, len(knots))) - 1.5 * (time % 2.5)  # semitones
    targets = VOWELS[vowel[sound].astype(int)] * tract
    return Utterance(
        formants=np.stack([smooth(column, 11) for column in targets.T], axis=1),
        pitch=pitch * 2 ** (smooth(melody, 15) / 12),
        voicing=smooth(voicing[sound], 5),
        frication=smooth((fricative[sound] >= 0).astype(float), 3),
        fricative=np.maximum(fricative[sound], 0).astype(int),
    )


def smooth(track: np.ndarray, frames: int) -> np.ndarray:
    """Moving average of a control track over an odd number of frames, with constant extrapolation."""
    padded = np.pad(track, frames // 2, mode="edge")
    return np.convolve(padded, np.full(frames, 1 / frames), mode="valid")


def glottal_pulses(pitch: np.ndarray, sample_rate: int, random: Generator) -> np.ndarray:
    """Derivative of the glottal flow `[T]` (Rosenberg 1971, pulse C) for a pitch in Hz at each sample."""
    phase = np.cumsum(pitch) / sample_rate
    cycles = np.arange(int(phase[-1]) + 2)
    jittered = cycles + 0.008 * random.standard_normal(len(cycles))
    shimmer = 1 + 0.05 * random.standard_normal(len(cycles))
    phase = np.interp(phase, np.maximum.accumulate(jittered), cycles)
    cycle = phase.astype(int)
    phase = phase - cycle
    opening, closing = 0.4, 0.16
    flow = np.where(phase < opening, 0.5 - 0.5 * np.cos(np.pi * phase / opening), 0.0)
    is_closing = (phase >= opening) & (phase < opening + closing)
    flow[is_closing] = np.cos(0.5 * np.pi * (phase[is_closing] - opening) / closing)
    return np.diff(flow * shimmer[cycle], prepend=0.0) * sample_rate / pitch / 10


def vocal_tract(voice: np.ndarray, hiss: np.ndarray, utterance: Utterance, sample_rate: int) -> np.ndarray:
    """Filter frame by frame in the frequency domain: `voice` by the formants, `hiss` by the fricative."""
    hop = round(sample_rate * FRAME)
    window = 0.5 * np.hanning(4 * hop + 1)[:-1]  # four windows overlap, with sum 1
    frequency = np.fft.rfftfreq(8 * hop, 1 / sample_rate)
    frames = len(utterance.pitch)

    def spectra(signal: np.ndarray) -> np.ndarray:
        padded = np.pad(signal, (2 * hop, (frames + 3) * hop - len(signal)))
        blocks = np.lib.stride_tricks.sliding_window_view(padded, 4 * hop)[::hop][:frames]
        return np.fft.rfft(blocks * window, 8 * hop)

    formants = np.concatenate([utterance.formants, np.tile(HIGH_FORMANTS, (frames, 1))], axis=1)
    spectrum = spectra(voice)
    for formant, bandwidth in zip(formants.T[:, :, None], BANDWIDTHS, strict=True):
        spectrum *= formant**2 / (formant**2 - frequency**2 + 1j * bandwidth * frequency)
    center, width, level = FRICATIVES.T[:, :, None]
    noise = level * np.exp(-0.5 * ((frequency - center) / width) ** 2)
    spectrum += noise[utterance.fricative] * spectra(hiss)
    blocks = np.fft.irfft(spectrum, 8 * hop).reshape(frames, 8, hop)
    audio = np.zeros((frames + 8, hop))
    for part in range(8):
        audio[part : part + frames] += blocks[:, part]
    return audio.ravel()[2 * hop : 2 * hop + len(voice)]


def music(seconds: float, sample_rate: int, random: Generator) -> np.ndarray:
    """Bars of plucked strings, mostly with drums, float32 `[T]`, peak below 1."""
    audio = np.zeros(round(seconds * sample_rate))
    beat = 60 / random.uniform(80, 140)  # seconds
    tonic = int(random.integers(40, 52))  # MIDI note
    progression = PROGRESSIONS[random.integers(len(PROGRESSIONS))]
    arpeggio, brightness = random.random() < 0.6, random.uniform(0.2, 0.9)
    drums = random.random() < 0.7
    for bar in range(int(seconds / (4 * beat)) + 1):
        degree = progression[bar % len(progression)]
        chord = [
            tonic + 12 * (step // 7) + MAJOR[step % 7]
            for step in (degree, degree + 2, degree + 4, degree + 7)
        ]
        notes = [(2 * half, chord[0] - 12, 0.9, 2.0) for half in range(2)]
        if arpeggio:
            notes += [(eighth / 2, chord[random.integers(4)] + 12, 0.6, 1.0) for eighth in range(8)]
        else:
            notes += [
                (at + 0.03 * n, note + 12, 0.4, 1.5) for at in (0, 1.5, 2.5) for n, note in enumerate(chord)
            ]
        for at, note, level, beats in notes:
            frequency = 440 * 2 ** ((note - 69) / 12)
            sound = pluck(frequency, beats * beat, sample_rate, brightness, random)
            mix(audio, level * random.uniform(0.7, 1.0) * sound, (4 * bar + at) * beat * sample_rate)
        for eighth in range(8 * drums):
            for sound in drum_sounds(eighth, sample_rate, random):
                mix(audio, sound, (4 * bar + eighth / 2) * beat * sample_rate)
    audio *= random.uniform(0.3, 0.95) / np.abs(audio).max()
    return audio.astype(np.float32)


def mix(audio: np.ndarray, sound: np.ndarray, start: float) -> None:
    """Add a sound to `audio` from sample `start`, cut at the end of `audio`."""
    room = audio[round(start) :]
    room[: len(sound)] += sound[: len(room)]


def pluck(
    frequency: float, seconds: float, sample_rate: int, brightness: float, random: Generator
) -> np.ndarray:
    """Plucked string `[T]` (Karplus and Strong 1983): noise in a loop of a delay line and a low-pass."""
    # Their "decay stretching": without a smaller loss per period of short strings high notes would be clicks.
    blend = float(np.clip(sample_rate / frequency / 600, 0.05, 0.5))
    period = int(sample_rate / frequency - blend)
    rounds = int(seconds * sample_rate / period) + 2
    string = np.zeros((rounds, period))
    noise = random.uniform(-1, 1, period)
    string[0] = brightness * noise + (1 - brightness) * smooth(noise, 9)
    for turn in range(1, rounds):
        previous = string[turn - 1]
        string[turn, 1:] = (1 - blend) * previous[1:] + blend * previous[:-1]
        string[turn, 0] = (1 - blend) * previous[0] + blend * string[max(turn - 2, 0), -1]
    # The period is a whole number: resampling corrects the pitch.
    speed = frequency * (period + blend) / sample_rate
    time = np.arange(round(seconds * sample_rate))
    sound = np.interp(time * speed, np.arange(string.size), string.ravel())
    return (sound - sound.mean()) * np.minimum(1, (len(time) - time) / (0.02 * sample_rate))


def drum_sounds(eighth: int, sample_rate: int, random: Generator) -> list[np.ndarray]:
    """Sounds at one eighth of a bar: hi-hat on every eighth, kick on 1 and 3, snare on 2 and 4."""
    time = np.arange(round(0.25 * sample_rate)) / sample_rate
    noise = random.standard_normal(len(time))
    sounds = [0.12 * np.diff(noise, prepend=0.0) * np.exp(-time / 0.025)]
    if eighth % 4 == 0:
        sounds.append(np.sin(2 * np.pi * (50 * time - 3.6 * np.exp(-time / 0.03))) * np.exp(-time / 0.08))
    if eighth % 4 == 2:
        sounds.append((0.25 * noise + 0.3 * np.sin(2 * np.pi * 190 * time)) * np.exp(-time / 0.07))
    return sounds
