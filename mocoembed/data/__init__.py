"""Collections and pixels: how the modules of this room hang together.

    folder.py   list_file.py   shards.py      what a folder, a list or tar shards hold -> Found
          \\          |           /
           found.py, joining.py               -> Listing (listing.py): row -> path, label, bytes
                     |                           images.py `scan` is the way in; listing_cache.py keeps large ones
    decode.py        |                        bytes -> checked, upright 8-bit RGB; crop.py cuts and resizes
           \\         |
            loader.py                         batches: two random crops (pretraining), one image (embedding)
           /         \\                         workers.py: the loading processes, which may die
    cache.py          views.py                cache.py: `--cache ram`, decoded once; views.py: the random draws, and
    resident.py                               applying them in batches; resident.py: crops made on the device

decode.py opens each format by a module of its own (png.py, jpeg.py, gif.py, tiff.py; formats.py: AVIF, HEIC), and
deep.py scales pixels of more than 8 bits. A batch leaves its loading process through shared.py; lost.py says why one
has died.
digests.py finds equal bytes; sample.py draws the images of the demo and the tests.
"""
