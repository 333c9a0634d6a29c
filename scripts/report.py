"""Compare finished runs on one page: python scripts/report.py runs/sweep"""

from codec.cli import report

if __name__ == "__main__":
    report()
