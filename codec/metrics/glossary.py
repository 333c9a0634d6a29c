"""Titles, units, directions and meanings of the scores, for tables, pages and model cards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """Title, meaning and unit of a score; `lower` if it falls with quality."""

    title: str
    meaning: str
    unit: str = ""
    lower: bool = False


# In the order of the tables.
GLOSSARY = {
    "mel": Entry(
        "mel distance",
        "Mean difference of log-mel spectrograms, summed over seven window lengths, as in DAC; 0 is equal. "
        "Phase does not count.",
        lower=True,
    ),
    "si_sdr": Entry(
        "SI-SDR",
        "Energy of the original over the energy of the error, at the best gain. Meaningless for codecs that "
        "do not reproduce the waveform.",
        "dB",
    ),
    "stft": Entry(
        "STFT distance",
        "Mean difference of magnitudes and log-magnitudes at two window lengths, as in DAC; 0 is equal. "
        "Finer in frequency than the mel distance.",
        lower=True,
    ),
    "l1": Entry(
        "waveform L1", "Mean absolute difference of the samples; full scale is 1, and 0 is equal.", lower=True
    ),
    "stoi": Entry("STOI", "Intelligibility of speech, 0 to 1 (Taal 2011). Lenient to noise."),
    "estoi": Entry(
        "ESTOI", "Intelligibility of speech, 0 to 1 (Jensen 2016). Stricter than STOI to fast distortions."
    ),
    "pesq_wb": Entry(
        "PESQ-WB", "Predicted listening score of speech at 16 kHz, 1.04 to 4.64 (ITU-T P.862.2)."
    ),
    "pesq_nb": Entry(
        "PESQ-NB", "Predicted listening score of speech at 8 kHz, 1.04 to 4.55 (ITU-T P.862.1)."
    ),
    "visqol_speech": Entry(
        "ViSQOL speech", "Predicted listening score of speech at 16 kHz, 1 to about 4.6 (ViSQOL v3)."
    ),
    "visqol_audio": Entry(
        "ViSQOL audio",
        "Predicted listening score of music at 48 kHz, 1 to 4.73 (ViSQOL v3). For speech, a full band "
        "outweighs clear words.",
    ),
    "zimtohrli": Entry(
        "Zimtohrli", "Predicted listening score of music at 48 kHz, 1 to 5 (Google 2024). Lenient to noise."
    ),
    "dnsmos_p808": Entry(
        "DNSMOS P.808 (no reference)",
        "Predicted listening score of speech at 16 kHz, 1 to 5, without the original (Reddy 2021). Clean "
        "speech with other words would score as high.",
    ),
}


LOWER_IS_BETTER = {name for name, entry in GLOSSARY.items() if entry.lower}


def entry_of(key: str) -> Entry:
    """Return the entry of a score; others, such as a plug-in's, get a title from their key."""
    return GLOSSARY.get(key) or Entry(key.replace("_", " "), "A score of your own.")


def title_of(key: str) -> str:
    """Title of a score."""
    return entry_of(key).title
