"""Make a model folder of an adapter file from elsewhere, and the base that it was trained on.

``python -m lit_insert.embedding_optimizer.convert emb_opt.pt --base paint-by-inpaint/add-base
--image_encoder openai/clip-vit-large-patch14 --out models/original`` writes a folder for ``infer.py insert --model``;
the same with an IP-Adapter file (``.bin``, ``.safetensors``).
"""

import argparse
import sys
from pathlib import Path

from lit_insert.embedding_optimizer.original import original_config
from lit_insert.embedding_optimizer.parts import load_parts
from lit_insert.embedding_optimizer.pipeline import InsertPipeline
from lit_insert.errors import InputError


def convert(weights: str | Path, base: str, out: str | Path, image_encoder: str | None = None) -> Path:
    """Write an exported folder; returns it.

    Args:
        weights: An ``emb_opt.pt`` or an IP-Adapter file.
        base: The InstructPix2Pix folder or hub id that goes with it.
        out: Folder to write.
        image_encoder: CLIP vision folder or hub id, if it is not in the base.

    Raises:
        InputError: If the file has no known layout or does not fit base and encoder.
    """
    config = original_config(weights)
    parts = load_parts(base, image_encoder, adapter=config, adapter_weights=str(weights))
    InsertPipeline.from_parts(parts).save_pretrained(out)
    return Path(out)


def main(args: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="emb_opt.pt or an IP-Adapter file")
    parser.add_argument("--base", required=True, help="InstructPix2Pix folder or hub id")
    parser.add_argument("--image_encoder", help="CLIP vision folder or hub id, if not in the base")
    parser.add_argument("--out", required=True, help="folder to write")
    try:
        print(convert(**vars(parser.parse_args(args))))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
