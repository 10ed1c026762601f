"""The options of ``infer.py synthesize``."""

import argparse

from lit_insert.cli.common import add_model_options, positive

_FORMATS = ("png", "jpg", "webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = (
        'infer.py synthesize --prompt TEXT [--boxes FILE | --box "WORDS:X0,Y0,X1,Y1" …] [--model MODEL] [options]'
    )
    what = parser.add_argument_group("what")
    what.add_argument("--prompt", metavar="TEXT", help='such as "a photo of <asset0> and <asset1> on the beach"')
    what.add_argument(
        "--prompts",
        metavar="FILE",
        help="several: a text file of one a line, or JSON or YAML of {prompt: …, boxes: …}",
    )
    what.add_argument(
        "--boxes", metavar="FILE", help="JSON or YAML: words of the prompt to [x0,y0,x1,y1] in fractions of the picture"
    )
    what.add_argument(
        "--box",
        metavar="WORDS:X0,Y0,X1,Y1",
        action="append",
        help='one box, such as "<asset0>:0.1,0.3,0.5,0.9"; repeat',
    )
    what.add_argument(
        "--boxes_only", metavar="FILE", help="instead: draw the layout of the boxes to this picture; needs no model"
    )
    what.add_argument(
        "--subject_token_indices",
        metavar="[[P],…]",
        help="token positions of each box's subject, the first word being 1; by default they are found",
    )
    auto = "bfloat16 on an accelerator, float32 on the CPU"
    add_model_options(parser, batch_size=4, batch_help="pictures made at once", auto=auto)
    parser.add_argument(
        "--model_id",
        metavar="NAME",
        help="the model as a name below Model_Ours/; pictures then go to OUTPUT/sample_NAME, and --batch_size of them",
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="model under learned instances, if it is no longer where they say"
    )
    _add_sampling(parser.add_argument_group("how"))
    out = parser.add_argument_group("output")
    out.add_argument(
        "--output", "--output_path", default="out", metavar="FOLDER", help="of pictures, grid.png and results.json"
    )
    out.add_argument("--format", choices=_FORMATS, default="png", help="of the pictures")
    out.add_argument("--report", metavar="FILE", help="also write an HTML page of the pictures and their boxes")


def _add_sampling(how: argparse._ArgumentGroup) -> None:
    how.add_argument("--num_images", metavar="N", type=positive, help="pictures of each prompt; by default 1")
    how.add_argument("--seed", metavar="N", type=int, default=0, help="of the first picture; the next have N+1, N+2, …")
    how.add_argument(
        "--num_inference_steps",
        "--steps",
        metavar="N",
        type=positive,
        help="of DDIM; by default the model's own",
    )
    how.add_argument(
        "--guidance_scale", metavar="S", type=float, help="weight of the prompt; by default the model's own"
    )
    how.add_argument(
        "--cfg_plus_plus", action="store_true", help="CFG++ in place of classifier-free guidance; scale 0 to 1"
    )
    how.add_argument("--negative_prompt", metavar="TEXT", help="what to keep away from")
    how.add_argument("--height", metavar="PX", type=positive, help="by default the model's own")
    how.add_argument("--width", metavar="PX", type=positive, help="by default the model's own")
    how.add_argument(
        "--end_tokens",
        choices=("subjects", "everywhere", "nowhere"),
        help="who sees the end of the prompt, which sums it up; by default the model's own",
    )
    how.add_argument(
        "--separate_words",
        action="store_true",
        default=None,
        help="read each subject's words without the others'; by default the model's own",
    )
    how.add_argument("--no_masks", action="store_true", help="do not keep attention within the boxes")
    how.add_argument("--no_guidance", action="store_true", help="do not move latents towards the boxes")
    how.add_argument("--no_refinement", action="store_true", help="keep the boxes as regions to the end")
    how.add_argument(
        "--objective",
        choices=("normalised", "mifo", "bounded_attention"),
        help="what the guidance lowers; mifo and bounded_attention as published; by default the model's own",
    )
    how.add_argument(
        "--step_size",
        metavar="A,B",
        type=_two_numbers,
        help="of the guidance, first and last; by default the model's own",
    )


def _two_numbers(text: str) -> list[float]:
    try:
        first, last = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers with a comma between") from error
    return [first, last]
