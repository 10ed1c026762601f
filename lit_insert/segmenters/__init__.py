"""Words to masks: one protocol, several models behind it (`lit_insert.segmenters.loading.load_segmenter`)."""
