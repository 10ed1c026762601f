from replace_samples import FindsStrongColours, backdrop, figure, sticker

from lit_insert.replace.page import ReplacePage
from lit_insert.replace.pipeline import ReplacePipeline


def test_steps_and_figures_of_every_photo_are_on_the_page():
    pipeline = ReplacePipeline(segmenter=FindsStrongColours())
    page = ReplacePage(rows=2)
    page.add("with.png", pipeline(figure()[0], cut_out=sticker()))
    page.add("without.png", pipeline(backdrop(), cut_out=sticker()))
    page.add("third.png", pipeline(figure()[0], cut_out=sticker()))
    html = page.page("three photos", [("seed", 0)]).html()
    assert html.count("<img") == 11 + 2  # the third photo has figures only
    for text in ("with.png", "without.png", "no person found", "third.png", "three photos", "mask of the result"):
        assert text in html
    assert "start of the fill" not in html  # nobody has it
