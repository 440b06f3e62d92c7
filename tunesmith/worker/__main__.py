"""`python -m tunesmith.worker`: the worker that `tunesmith serve` starts; it ends when its parent does."""

from tunesmith.settings import Settings
from tunesmith.worker import worker

if __name__ == "__main__":
    worker.main(Settings.load(), with_parent=True)
