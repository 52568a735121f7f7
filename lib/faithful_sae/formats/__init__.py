"""The formats SAEs are published in, a file each. Whatever is read ends up as the function of sae.py, or is refused with a reason.

    folders.py    which format a folder has
    source.py     what the readers share: two files, tensors of given shapes, and the ways to fold a flag into weights
    hooks.py      the place in a language model that an SAE reads, by its many names
"""
