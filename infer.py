"""Use a trained model: ``python infer.py insert --image … --object …``."""

from lit_insert.cli.infer import main

if __name__ == "__main__":
    main()
