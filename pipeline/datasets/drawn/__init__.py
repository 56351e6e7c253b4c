"""Generated street scenes: `generated` (files) > `picture` > `paint_*` > `canvas` > `plan` > `things` > `setting` > `noise`, `colours`.

Imports point that way only; the folder may import `pipeline.ground` and, of `pipeline.datasets`, what every dataset has, never `scenes`.
After an edit here all scenes are drawn anew, and models trained anew if a pixel came out differently.
"""
