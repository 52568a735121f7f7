"""Put the new place of a copied or moved environment in the place of the old one, in the scripts
that name it: moved.py OLD NEW. Standard library only.
"""

import sys
from pathlib import Path

old, new = (name.encode() for name in sys.argv[1:])
folder = Path(sys.argv[2])
for file in (folder / "pyvenv.cfg", *(folder / "bin").iterdir()):
    if not file.is_symlink() and file.is_file() and old in (text := file.read_bytes()):
        file.write_bytes(text.replace(old, new))
