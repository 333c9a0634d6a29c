"""Examine a folder of recordings: python scripts/doctor.py /path/to/wavs"""

from codec.commands.main import doctor

if __name__ == "__main__":
    doctor()
