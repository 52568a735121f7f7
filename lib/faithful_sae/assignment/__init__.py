"""Assignment problems as large as two dictionaries of 131,072 rows, solved exactly and with a
proof, without the dense matrix.

rows.py    a dictionary's rows wherever they are, and its 8-bit codes with rigorous error bounds
scan.py    tiled products of codes; pairs above a threshold
sparse.py  auction, shortest augmenting paths and centred dual prices on a sparse graph
search.py  the loop: solve on the graph of likely pairs, look for pairs that the dual prices do not
rule out, repeat
dense.py   small problems: scipy, and dual prices for its answer
"""
