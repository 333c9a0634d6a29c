import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["ci"]
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent / "scripts"))  # last: names there are common ones
# Before torch is imported: more threads than cores wait for each other, and spin while they do.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell ignores SIGINT for what it runs in the background, and what is started from here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def user_cache(tmp_path_factory) -> Iterator[None]:
    """Nothing that runs here, also in processes of its own, writes into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def wavs(tmp_path_factory) -> Path:
    """A few seconds of tones at 16 kHz."""
    import numpy as np

    from codec.audio.writing import write_wav

    folder = tmp_path_factory.mktemp("wavs")
    random = np.random.default_rng(0)
    for number in range(6):
        tone = np.sin(np.cumsum(random.uniform(0.02, 0.3, 16_000)))[None]
        write_wav(folder / f"{number}.wav", 0.3 * tone.astype(np.float32), 16_000)
    return folder


@pytest.fixture(scope="module")
def codec():
    """A small codec whose codes mean something."""
    from tokenized import small_codec

    return small_codec()


@pytest.fixture(scope="session")
def real_speech() -> Path:
    """Folder of real recordings, named by CODEC_TEST_AUDIO."""
    folder = os.environ.get("CODEC_TEST_AUDIO")
    if not folder:
        pytest.skip("needs real recordings: set CODEC_TEST_AUDIO to a folder of speech")
    assert Path(folder).is_dir(), f"CODEC_TEST_AUDIO={folder} is no folder"
    return Path(folder)
