import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
# Two cores are shared with whatever else runs: more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(scope="session")
def real_speech() -> Path:
    """Folder of real recordings, named by CODEC_TEST_AUDIO."""
    folder = os.environ.get("CODEC_TEST_AUDIO")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real recordings: set CODEC_TEST_AUDIO to a folder of speech")
    return Path(folder)
