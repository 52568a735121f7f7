"""What the notebooks call: each stage makes what is missing, reuses what is there, and says what it
does.

Expensive results (language model, faithful text, SAEs) are artefacts with a key (see
provenance.py); cheap ones are rows, csv files under `artifacts/<profile>/<run>/rows/`, from which
every exhibit is drawn. One file per stage, so that a change in one reruns only the notebooks that
use it.
"""
