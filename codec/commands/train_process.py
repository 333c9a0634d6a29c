"""Further process of a training on several devices, as `python -m codec.commands.train_process`."""

from codec.commands.main import train

if __name__ == "__main__":
    train()
