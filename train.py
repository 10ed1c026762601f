"""Train, validate, test or predict: ``python train.py fit --config configs/…``."""

from lit_insert.cli.train import main

if __name__ == "__main__":
    main()
