"""What each latent of an SAE responds to, what it does to the output, and whether another seed has
it.

    index.py       the files of an index, and FeatureIndex, which reads them: no model is needed
    collect.py     one pass over a corpus: counts, and the contexts that are kept
    build.py       an index from (language model, SAE, token rows)
    explain.py     MaxAct, PruningMaxAct, VocabProj, MutInfo
    steering.py    a latent made stronger, set or taken away while the model writes
    vocabulary.py  a string for every token id

What a latent's explanation is worth is found out apart from an index:

    codes.py           where every latent fires in token rows
    windows.py         windows that explain a latent, and others, of other documents, that test it
    judging.py         what a judge is; judges.py: two that know tokens; language_judges/: a local
                       model, a server, a sentence encoder
    interpretation.py  detection and fuzzing
    groups.py          scores of shared latents and of others
    descriptions.py    whether a latent's tokens say what goes in and what comes out

All of it works on any SAE that load_sae reads and any model that load_model loads; no parameter
file is needed.
"""
