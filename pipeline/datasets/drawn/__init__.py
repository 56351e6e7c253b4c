"""Generated street scenes: `generated` (files) > `picture` > `paint_*` > `canvas` > `noise`, `colours`; imports point that way only.

After an edit here all scenes are drawn anew, and models trained anew if a pixel came out differently. It may import `pipeline.ground`
and what every dataset has from `pipeline.datasets`, never `scenes`.
"""
