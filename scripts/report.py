"""Compare finished runs on one page: python scripts/report.py runs/sweep"""

from codec.commands.main import report

if __name__ == "__main__":
    report()
