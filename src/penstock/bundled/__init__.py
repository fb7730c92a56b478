"""Models that travel with the package, so that every demonstration and test runs without a download."""

from pathlib import Path

TINY = Path(__file__).parent / "penstock-tiny"  # a Hugging Face model directory
