"""Colours for classes that bring none."""

import colorsys

# Masataka Okabe and Kei Ito, "Color Universal Design" (2008): distinguishable with every kind of colour vision. Black is left to void.
OKABE_ITO = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
GOLDEN = 0.61803398875  # steps of this share of the circle never come close to an earlier hue soon
TONES = ((0.45, 0.85), (0.70, 0.60), (0.30, 0.70))  # lightness, saturation


def distinct(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` different colours; the first seven suit every kind of colour vision."""
    colours = list(OKABE_ITO[:count])
    step = 0
    while len(colours) < count:
        lightness, saturation = TONES[step % len(TONES)]
        red, green, blue = colorsys.hls_to_rgb(step * GOLDEN % 1, lightness, saturation)
        colour = (round(red * 255), round(green * 255), round(blue * 255))
        if colour not in colours:
            colours.append(colour)
        step += 1
    return tuple(colours)
