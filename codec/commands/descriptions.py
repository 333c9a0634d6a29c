"""Descriptions in the help of commands."""

TABLES_FILE = "entropy.safetensors"  # beside a model

DOCTOR = (
    "List the contents of folders of audio, and the fault of each file that is not usable.",
    "Exit status: 0 all files are usable, 1 some are not, 2 a folder cannot be used.",
)

EVALUATE = (
    "Code recordings with trained, published and classical codecs, and score the results.",
    "The same command again resumes. Nothing is downloaded.",
)

REPORT = (
    "Compare finished runs on one page: codec-report runs/sweep",
    "Statistics of a listening test of codec-evaluate --listening: codec-report ann.csv bob.csv -o tables",
)

EXPORT = "Export a codec for other software, and verify there that codes and audio are equal."

COMPRESS = """Write a recording as a small .codec file.

The recording may have any format, rate and length. The file holds the codes in chunks that decode
independently, every byte under a checksum. The entropy tables of codec-fit-entropy make it smaller.

example: codec-compress runs/tiny in.wav -o out.codec --num-quantizers 4
in a pipe: ffmpeg -i in.m4a -f wav - | codec-compress runs/tiny - -o - > out.codec"""

DECOMPRESS = """Decode a .codec file to a 16-bit wav of the recording's length, at the codec's sample rate.

Requires the codec and the entropy tables that wrote the file. Exit status: 0 complete, 1 with --salvage, some
chunks were damaged and are silent, 2 nothing was written.

example: codec-decompress runs/tiny in.codec -o out.wav"""

TRUNCATE = """Copy a .codec file with fewer quantizers: smaller, with a larger error.

Requires no model and codes nothing again: the bytes equal those of codec-compress --num-quantizers N.

example: codec-truncate in.codec -o out.codec --num-quantizers 2"""

ENCODE = """Encode recordings to tokens; a codec without codes writes its latents.

The same command again resumes.

With - as input or output one recording becomes one NumPy array of integers [quantizers, frames]:

example: sox in.mp3 -t wav - | codec-encode runs/tiny - -o - | codec-decode runs/tiny - -o out.wav"""

COMPILE = """compile the encoder first, which takes minutes; codes differ by rounding only. For GPUs: a CPU
core encodes batches with speech_16khz 0.96 times as fast, with soundstream_24khz 1.09 times"""

FEATURES = """Compute the features of a speech model for all recordings, for codec-train teacher=features.

Features are computed with the context of each recording and stored as a latent dataset. The same command
again resumes.

example: codec-features /models/wavlm-base-plus /speech -o features
then: codec-train teacher=features teacher.path=features data.root=/speech"""

DECODE = "Decode tokens to wavs. The same command again resumes."

FIT = f"""Fit entropy tables, which make a codec's .codec files smaller.

The tables are written into the model's folder as {TABLES_FILE}, where codec-compress and codec-decompress
look for them; -o sets another path. Reading a file requires the tables that wrote it. Tokens of fewer
quantizers than the codec's give tables for these; codes of the others are stored uncompressed.

example: codec-fit-entropy runs/tiny /path/to/wavs"""


PLAN = """Measure a few training steps on this machine, and forecast the training.

Takes the Hydra overrides of codec-train, composes the same config and trains a few steps of each part of the
run, at several batch sizes, with checkpointing or accumulation, then with other precision and with
compilation, each in a new process. Prints time, memory, disk, loading processes and the recommended command.
Nothing is written into the run folder.
Ctrl-C ends with the forecast of the finished measurements.

example: codec-plan experiment=speech_16khz data.root=/path/to/speech"""
