"""From a collection to `embeddings.h5`: how the modules of this room hang together.

    claim.py      which file is written, and the lock that lets one run write it
    prepare.py    what is there, what may be replaced, what is left to do -> Job; plan.py: image by image
    extract.py    the run: batches -> frozen encoder -> vectors, by one process or many
    fill.py       one process's share -> work.py, the work file: a slot per image, safe against kill -9
    publish.py    finished work -> the embeddings file; salvage.py: what an interrupted run left behind
    store_writer.py, store.py    writing and reading the embeddings file (HDF5), with seal.py: its hash,
                                 sparse.py: HDF5 in memory, column.py: columns read only where indexed,
                                 aside.py: reading and hashing beside writing
    convert.py    to and from other formats, with npy.py, parquet.py and thumbnails.py
    in_memory.py  images given from Python -> vectors, without a collection or a file
"""
