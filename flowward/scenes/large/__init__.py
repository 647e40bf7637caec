"""The larger built-in world, scenes-64: 64 x 64 pixels, textures, sizes, relations of three, and words.

letters.py: the letters. textures.py: the patterns. layout.py: where things are. render.py: pictures. reading.py: words
in pictures. looking.py: objects in pictures. checker.py: whether a picture is what was asked for.
"""
