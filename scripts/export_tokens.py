"""Write a token dataset as another library reads it: python scripts/export_tokens.py tokens --to hf -o out"""

from codec.commands.main import export_tokens

if __name__ == "__main__":
    export_tokens()
