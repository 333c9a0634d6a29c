"""Hear a codec at work: python scripts/stream.py runs/tiny in.wav -o out.wav (or microphone and speakers)"""

from codec.commands.main import stream

if __name__ == "__main__":
    stream()
