import json

import numpy as np
from replace_samples import FindsStrongColours, figure, sticker

from lit_insert.images import load_image
from lit_insert.replace.pipeline import ReplacePipeline


def test_every_step_is_saved_in_order(tmp_path):
    photo, _ = figure()
    output = ReplacePipeline(segmenter=FindsStrongColours())(photo, cut_out=sticker())
    paths = output.steps.save(tmp_path / "steps")
    assert [p.name for p in paths] == [
        "01_photo.png",
        "02_mask.png",
        "03_person.png",
        "04_region.png",
        "05_hole.png",
        "06_paste.png",
        "08_filled.png",
        "09_blended.png",
        "10_alpha.png",
        "11_result.png",
        "12_mask_after.png",
    ]
    assert np.array_equal(load_image(paths[-2]), output.image)
    assert load_image(paths[5], mode="RGBA").getchannel("A").getextrema() == (0, 255)
    assert np.array_equal(np.asarray(load_image(paths[2], mode="L")) > 0, output.steps.person)


def test_the_report_is_plain(tmp_path):
    photo, mask = figure()
    report = ReplacePipeline()(photo, mask=mask, cut_out=sticker()).report.as_dict()
    assert json.loads(json.dumps(report))["background_max_abs_diff"] == 0
    assert report["presence_before"] is None
    assert 0 < report["person_area"] < report["hole_area"] < 1
