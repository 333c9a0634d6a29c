"""Export a codec for other software: python scripts/export.py runs/tiny --to onnx -o exported"""

from codec.commands.main import export

if __name__ == "__main__":
    export()
